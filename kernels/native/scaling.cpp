#include "scaling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "machine.h"

namespace latentseg {

namespace {

constexpr uint32_t kExponent = 0x7f800000u;
constexpr size_t kBlock = 256;
constexpr int kCountedBits = 5;

// At most kBlock values side by side. A few limits are counted; of more, a binary search finds how many lie below x,
// bit by bit: limits[q | step - 1] < x sets a bit of q.
LATENTSEG_CLONES bool search(const float *x, size_t n, const float *limits, int bits, uint8_t *q) {
    int32_t found[kBlock] = {};
    if (bits <= kCountedBits) {
        for (int j = 0; j < (1 << bits) - 1; ++j)
            for (size_t i = 0; i < n; ++i) found[i] += limits[j] < x[i];
    } else {
        for (int32_t step = 1 << bits >> 1; step; step >>= 1)
            for (size_t i = 0; i < n; ++i) found[i] |= limits[found[i] | (step - 1)] < x[i] ? step : 0;
    }
    uint32_t bad = 0;
    for (size_t i = 0; i < n; ++i) {
        bad |= (std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent;
        q[i] = static_cast<uint8_t>(found[i]);
    }
    return !bad;
}

void look_up(const uint8_t *symbols, size_t n, const float *values, float *out) {
    for (size_t i = 0; i < n; ++i) out[i] = values[symbols[i]];
}

#if defined(LATENTSEG_X86_VECTORS)

// Sixteen values stay in two registers. A gather is slower than look_up.
__attribute__((target("avx2"))) void look_up_16(const uint8_t *symbols, size_t n, const float *values, float *out) {
    const __m256 low = _mm256_loadu_ps(values), high = _mm256_loadu_ps(values + 8);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i index = _mm256_cvtepu8_epi32(_mm_loadu_si64(symbols + i));
        const __m256 above = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // its sign: bit 3 of the index
        const __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                                              _mm256_permutevar8x32_ps(high, index), above);
        _mm256_storeu_ps(out + i, value);
    }
    look_up(symbols + i, n - i, values, out + i);
}

#endif

}  // namespace

bool quantize(const float *x, size_t n, int levels, float lo, float hi, uint8_t *q) {
    const float span = hi - lo, top = static_cast<float>(levels);
    // Adding and taking away 2^23 rounds to an integer, half to even, and unlike nearbyint becomes plain SSE2.
    constexpr float kRound = 8388608.0f;
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

bool quantize_codebook(const float *x, size_t n, const float *midpoints, size_t count, uint8_t *q) {
    // Midpoint j stands at limits[j]; behind the last one there is none below any x. So the search needs no bounds.
    float limits[256];
    std::fill(std::copy_n(midpoints, count, limits), limits + 256, std::numeric_limits<float>::infinity());
    const int bits = std::bit_width(count);
    bool finite = true;
    for (size_t i = 0; i < n; i += kBlock) finite &= search(x + i, std::min(kBlock, n - i), limits, bits, q + i);
    return finite;
}

LookUp best_look_up([[maybe_unused]] int bits) {
#if defined(LATENTSEG_X86_VECTORS)
    if (bits <= 4 && __builtin_cpu_supports("avx2")) return look_up_16;
#endif
    return look_up;
}

void value_table(int levels, float lo, float hi, float *values) {
    const float step = (hi - lo) / static_cast<float>(levels);
    for (int s = 0; s < 256; ++s) values[s] = static_cast<float>(s < levels ? s : levels) * step + lo;
}

bool good_range(float lo, float hi) { return std::isfinite(255.0f * (hi - lo)) && lo <= hi; }

}  // namespace latentseg
