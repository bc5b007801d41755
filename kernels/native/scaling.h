// float2int and int2float (paper eq. 2 and 4), in the same float32 steps as kernels/quantize.py and dequantize.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace latentseg {

// q = round_half_even(levels * (x - lo) / (hi - lo)) clipped to [0, levels], for n values; zeros when hi == lo.
// Returns whether all of x is finite.
bool quantize(const float *x, size_t n, int levels, float lo, float hi, uint8_t *q);

// q = how many of the ascending `midpoints` (count <= 255) lie below x, for n values. Returns whether all of x is
// finite.
bool quantize_codebook(const float *x, size_t n, const float *midpoints, size_t count, uint8_t *q);

// The value of each symbol 0..levels: s * ((hi - lo) / levels) + lo; 256 entries, the last one repeated.
void value_table(int levels, float lo, float hi, float *values);

// out[i] = values[symbols[i]] for n symbols; `values` has 256 entries.
using LookUp = void (*)(const uint8_t *symbols, size_t n, const float *values, float *out);

// The fastest that this machine can run, for symbols below 2^bits.
LookUp best_look_up(int bits);

// Whether (lo, hi) can be a range: finite, lo <= hi, and 255 * (hi - lo) does not overflow.
bool good_range(float lo, float hi);

}  // namespace latentseg
