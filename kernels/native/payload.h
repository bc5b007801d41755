// What the decoders of both coders share: a payload's scales and numbers, and lanes that threads take by groups.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "entropy.h"
#include "scaling.h"
#include "workers.h"

namespace latentseg {

[[noreturn]] inline void damaged(const std::string &what) { throw std::invalid_argument("payload damaged: " + what); }

inline float load_f32(const uint8_t *p) {
    float v;
    std::memcpy(&v, p, 4);
    return v;
}

// lo, hi in turn: 1 or C pairs; 0, 0 with a codebook. Moves `at` behind the scales. G: Geometry or TileGeometry.
template <class G>
std::vector<float> read_ranges(const uint8_t *payload, size_t size, const G &g, size_t &at) {
    if (g.scaling == Scaling::fixed) return {g.lo, g.hi};
    if (g.scaling == Scaling::codebook) return {0, 0};
    const size_t n = g.scaling == Scaling::channel ? g.channels : 1;
    if (size < 8 * n) damaged("it ends inside the scales");
    std::vector<float> ranges;
    for (size_t i = 0; i < n; ++i) {
        const float lo = load_f32(payload + 4 * i), hi = load_f32(payload + 4 * (n + i));
        if (!good_range(lo, hi)) damaged("a scaling range is not finite with lo <= hi");
        ranges.insert(ranges.end(), {lo, hi});
    }
    at = 8 * n;
    return ranges;
}

inline size_t read_number(const uint8_t *payload, size_t size, size_t &at) {
    size_t value = 0;
    for (int digit = 0; digit < 4 && at < size; ++digit) {
        const uint8_t byte = payload[at++];
        value |= static_cast<size_t>(byte & 127) << 7 * digit;
        if (byte < 128) {
            if (digit && !byte) damaged("a lane length has a leading zero");
            return value;
        }
    }
    damaged("a lane length is cut or too long");
}

// Calls decode(group, worker) -> the number of a damaged lane, or SIZE_MAX, for each of the groups, the costly ones first
// so that threads end together, on up to `threads` threads; worker < threads names the one that it runs on. decode
// throws nothing.
template <class Function>
void decode_groups(size_t groups, int threads, const Function &decode) {
    std::atomic<size_t> next{0}, worst{SIZE_MAX};
    const auto work = [&](size_t worker) noexcept {
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < groups;) {
            const size_t bad = decode(i, worker);
            // The lowest damaged lane is named, whichever thread met one first.
            size_t seen = worst.load();
            while (bad < seen && !worst.compare_exchange_weak(seen, bad)) {
            }
        }
    };
    const size_t wanted = std::min<size_t>(static_cast<size_t>(threads), groups);
    if (wanted > 1)
        Workers::get().run(wanted - 1, work);
    else
        work(0);
    if (worst != SIZE_MAX) damaged("lane " + std::to_string(worst.load()) + " does not end where its length says");
}

}  // namespace latentseg
