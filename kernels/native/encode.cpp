#include <algorithm>
#include <bit>

#include "entropy.h"
#include "huffman.h"

namespace latentseg {

static_assert(std::endian::native == std::endian::little, "the stores below are written for little-endian machines");

namespace {

Counts count_symbols(const uint8_t *q, size_t n) {
    // Four histograms: a run of one symbol would wait for its own store otherwise.
    uint32_t part[4][kLevels] = {};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; ++k) ++part[k][q[i + k]];
    for (; i < n; ++i) ++part[0][q[i]];
    Counts counts;
    for (int s = 0; s < kLevels; ++s) counts[s] = uint64_t{part[0][s]} + part[1][s] + part[2][s] + part[3][s];
    return counts;
}

// Writes n symbols' codes, highest bit first, zero bits up to a byte; returns the end. May touch 8 bytes behind it.
// entries: code | length << 16.
uint8_t *write_lane(const uint8_t *q, size_t n, const uint32_t *entries, uint8_t *out) {
    uint64_t acc = 0;  // the lowest `held` bits are still to be written
    unsigned held = 0;
    const auto put = [&](uint8_t symbol) {
        const uint32_t entry = entries[symbol];
        acc = acc << (entry >> 16) | (entry & 0xffff);
        held += entry >> 16;
    };
    const auto flush = [&] {
        // held <= 7 + 4 * 12; a shift by 64 - held in two steps, since held may be 0.
        store_be64(out, acc << 1 << (63 - held));
        out += held >> 3;
        held &= 7;
    };
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (int k = 0; k < 4; ++k) put(q[i + k]);
        flush();
    }
    for (; i < n; ++i) put(q[i]);
    flush();
    return out + (held > 0);
}

void put_number(size_t value, std::vector<uint8_t> &out) {
    for (; value >= 128; value >>= 7) out.push_back(static_cast<uint8_t>((value & 127) | 128));
    out.push_back(static_cast<uint8_t>(value));
}

}  // namespace

std::vector<uint8_t> encode(const uint8_t *q, size_t symbols, size_t segments, size_t lane_symbols,
                            const uint8_t *scales, size_t scale_bytes) {
    const size_t n = symbols / segments;
    std::vector<uint8_t> head(scales, scales + scale_bytes), sizes, lanes;
    size_t used = 0;
    for (size_t segment = 0; segment < segments; ++segment) {
        const uint8_t *at = q + segment * n;
        const Counts counts = count_symbols(at, n);
        const Code code = make_code(counts);
        pack_lengths(code, head);
        if (!code.coded) continue;
        const auto codes = canonical_codes(code.lengths);
        uint32_t entries[kLevels];
        size_t bits = 0;
        for (int s = 0; s < kLevels; ++s) {
            entries[s] = codes[s] | uint32_t{code.lengths[s]} << 16;
            bits += counts[s] * code.lengths[s];
        }
        lanes.resize(used + bits / 8 + (n + lane_symbols - 1) / lane_symbols + 16);
        for (size_t first = 0; first < n; first += lane_symbols) {
            uint8_t *begin = lanes.data() + used;
            const uint8_t *end = write_lane(at + first, std::min(lane_symbols, n - first), entries, begin);
            put_number(static_cast<size_t>(end - begin), sizes);
            used += static_cast<size_t>(end - begin);
        }
    }
    head.reserve(head.size() + sizes.size() + used);
    head.insert(head.end(), sizes.begin(), sizes.end());
    head.insert(head.end(), lanes.begin(), lanes.begin() + static_cast<std::ptrdiff_t>(used));
    return head;
}

}  // namespace latentseg
