#include "scaling.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace latentseg {

bool quantize(const float *x, size_t n, int levels, float lo, float hi, uint8_t *q) {
    const float span = hi - lo, top = static_cast<float>(levels);
    // Adding and taking away 2^23 rounds to an integer, half to even, and unlike nearbyint becomes plain SSE2.
    constexpr float kRound = 8388608.0f;
    constexpr uint32_t kExponent = 0x7f800000u;
    uint32_t bad = 0;
    if (span > 0) {
        for (size_t i = 0; i < n; ++i) {
            bad |= (std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent;
            float v = top * (x[i] - lo) / span;
            v = v > 0.0f ? v : 0.0f;
            v = v < top ? v : top;
            q[i] = static_cast<uint8_t>(static_cast<int>((v + kRound) - kRound));
        }
    } else {
        for (size_t i = 0; i < n; ++i) bad |= (std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent;
        std::memset(q, 0, n);
    }
    return !bad;
}

void value_table(int levels, float lo, float hi, float *values) {
    const float step = (hi - lo) / static_cast<float>(levels);
    for (int s = 0; s < 256; ++s) values[s] = static_cast<float>(s < levels ? s : levels) * step + lo;
}

bool good_range(float lo, float hi) { return std::isfinite(255.0f * (hi - lo)) && lo <= hi; }

}  // namespace latentseg
