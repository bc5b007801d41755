// Coder 1: lanes of canonical Huffman codes (docs/format.md). The Python twin is kernels/entropy_reference.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(_MSC_VER)
#include <stdlib.h>
#endif

namespace latentseg {

enum class Scaling : int { tensor = 0, channel = 1, fixed = 2, codebook = 3 };

// What the decoder needs of a stream header.
struct Geometry {
    size_t symbols;       // C * h * w
    size_t channels;      // C; divides symbols
    int bits;             // 1..8
    Scaling scaling;
    float lo, hi;         // of fixed scaling
    bool table_a_channel; // dictionary "channel"
    size_t lane_symbols;
    const float *values = nullptr;  // of a codebook: one a symbol, 256
};

// Cuts `symbols` into `segments` of equal size with one table each, codes them, and returns scales + tables + lane
// lengths + lanes. `segments` divides `symbols`, which is not 0.
std::vector<uint8_t> encode(const uint8_t *q, size_t symbols, size_t segments, size_t lane_symbols,
                            const uint8_t *scales, size_t scale_bytes);

// Decode a payload of any content; out has g.symbols entries. Throw std::invalid_argument when it is damaged (out then
// holds anything). threads >= 1 share the lanes; 1 starts none.
void decode_symbols(const uint8_t *payload, size_t size, const Geometry &g, uint8_t *out, int threads);
void decode_floats(const uint8_t *payload, size_t size, const Geometry &g, float *out, int threads);

// Eight bytes, the first one highest: the code bits in reading order.
inline uint64_t load_be64(const uint8_t *p) {
    uint64_t v;
    std::memcpy(&v, p, 8);
#if defined(_MSC_VER)
    return _byteswap_uint64(v);
#else
    return __builtin_bswap64(v);
#endif
}

inline void store_be64(uint8_t *p, uint64_t v) {
#if defined(_MSC_VER)
    v = _byteswap_uint64(v);
#else
    v = __builtin_bswap64(v);
#endif
    std::memcpy(p, &v, 8);
}

}  // namespace latentseg
