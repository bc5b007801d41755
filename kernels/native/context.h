// Coders 2 and 3: tiles coded by the errors about each symbol, and in the frame before (docs/format.md). The Python twin
// is kernels/context_reference.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "entropy.h"

namespace latentseg {

// What they need of a stream header.
struct TileGeometry {
    size_t channels, height, width;  // the product is at most 2^26
    int bits;                        // 1..8
    Scaling scaling;
    float lo, hi;                    // of fixed scaling
    size_t rows, columns;            // of a tile; 1..65535
    const float *values = nullptr;   // of a codebook: one a symbol, 256
};

// Codes symbols below 2^bits, (channels, height, width) in raster order: scales + channels + lane lengths + lanes.
// Scaling and range are not looked at.
std::vector<uint8_t> context_encode(const uint8_t *q, const TileGeometry &g, const uint8_t *scales,
                                    size_t scale_bytes);

// Decode a payload of any content into channels * height * width entries. Throw std::invalid_argument when it is
// damaged (out then holds anything). threads >= 1 share the lanes; 1 starts none.
void context_decode_symbols(const uint8_t *payload, size_t size, const TileGeometry &g, uint8_t *out, int threads);
void context_decode_floats(const uint8_t *payload, size_t size, const TileGeometry &g, float *out, int threads);

// Coder 3. What a frame leaves to the next one, in raster order: symbols and absolute errors. Any content will do.
struct History {
    const uint8_t *symbols, *errors;
};

// Codes a frame against the one before, or alone where that takes no more bytes, or where `before` is null. Leaves its
// absolute errors in `errors`.
std::vector<uint8_t> inter_encode(const uint8_t *q, const TileGeometry &g, const uint8_t *scales, size_t scale_bytes,
                                  const History *before, uint8_t *errors);

// Decode a payload of any content as those of coder 2, and leave to the next frame symbols and errors (anything after
// damage); these may not lie where `before` does, which only frames that refer to it look at.
void inter_decode_symbols(const uint8_t *payload, size_t size, const TileGeometry &g, const History &before,
                          uint8_t *symbols, uint8_t *errors, int threads);
void inter_decode_floats(const uint8_t *payload, size_t size, const TileGeometry &g, const History &before,
                         uint8_t *symbols, uint8_t *errors, float *out, int threads);

// Takes a payload apart for the GPU decoder (kernels/gpu/batch.py) and checks it, up to the lanes' bits: lo and step of
// each range, or with a codebook the values of the 2^bits symbols; each channel's mode + 4 f + 2^8 g + 2^16 centre;
// first byte (the payload's own first one being number `at`) and bytes of each lane, [tile][channel], 0 and 0 in
// constant channels.
void context_lanes(const uint8_t *payload, size_t size, const TileGeometry &g, size_t at, float *ranges,
                   int32_t *channels, int32_t *lanes);

inline size_t tile_count(const TileGeometry &g) {
    return ((g.height + g.rows - 1) / g.rows) * ((g.width + g.columns - 1) / g.columns);
}

}  // namespace latentseg
