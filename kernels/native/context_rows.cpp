#include "context_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "context_model.h"
#include "machine.h"

#if defined(LATENTSEG_X86_VECTORS) && !defined(__clang__)
// GCC 12 takes the undefined operands in its own headers for ours.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace latentseg {

namespace {

template <bool kRefers>
void decode_row_plain(Group &group, const uint8_t *bits, const uint32_t *decoding, uint8_t *symbols, uint8_t *errors,
                      int columns, bool first, int top, const uint8_t *previous, const uint8_t *around) {
    int32_t w[kLanes], nw[kLanes], aw[kLanes], aww[kLanes];
    for (int k = 0; k < kLanes; ++k) {
        w[k] = nw[k] = symbols[k];
        aw[k] = aww[k] = errors[k];
    }
    for (int c = 0; c < columns; ++c, symbols += kLanes, errors += kLanes) {
        for (int k = 0; k < kLanes; ++k) {
            const int32_t n = first ? w[k] : symbols[k], an = first ? aw[k] : errors[k];
            const int32_t ane = first ? aw[k] : errors[k + kLanes];
            const int32_t sum = kRefers ? around[c * kLanes + k] : 0;
            const auto m = static_cast<float>(2 * (aw[k] + an) + aww[k] + ane + 1 + sum);
            // floor(2 log2 m) is the exponent of m * m, which a float holds exactly.
            const uint32_t level = std::bit_cast<uint32_t>(m * m) >> 23 & 31;
            const uint32_t entry = decoding[group.tables[level][k] + group.state[k]];
            uint32_t word;
            std::memcpy(&word, bits + (group.at[k] >> 3), 4);
            word >>= group.at[k] & 7;
            const uint32_t fresh = entry >> 11 & 15, escape = entry >> 15 & 15;
            group.state[k] = (entry & (kStates - 1)) + (word & ((1u << fresh) - 1));
            group.at[k] = std::min(group.at[k] + fresh + escape, group.limit[k]);
            const uint32_t byte = entry >> 19 | (word >> fresh & ((1u << escape) - 1));
            const int32_t e = static_cast<int8_t>(byte);
            const int32_t median = std::max(std::min(w[k], n), std::min(std::max(w[k], n), w[k] + n - nw[k]));
            nw[k] = n;
            const int32_t old = kRefers ? previous[c * kLanes + k] : 0;
            w[k] = ((median & group.predicted[k]) + group.centre[k] + old + e) & top;
            aww[k] = aw[k];
            aw[k] = e < 0 ? -e : e;
            symbols[k] = static_cast<uint8_t>(w[k]);
            errors[k] = static_cast<uint8_t>(aw[k]);
        }
    }
}

#if defined(LATENTSEG_X86_VECTORS)

// The same in vectors, twice. The compilers' own vector types serve for all but gathers, widening
// and narrowing, which GCC would do lane by lane.
#define LATENTSEG_TARGET "avx2"
#define LATENTSEG_WIDTH 8
#define LATENTSEG_WIDEN(bytes) (Ints)(_mm256_cvtepu8_epi32(_mm_loadu_si64(bytes)))
#define LATENTSEG_NARROW(bytes, ints)                                                                          \
    _mm_storeu_si64(bytes, _mm_packus_epi16(_mm_packus_epi32(_mm256_castsi256_si128((__m256i)(ints)),          \
                                                             _mm256_extracti128_si256((__m256i)(ints), 1)),    \
                                            _mm_setzero_si128()))
#define LATENTSEG_GATHER(base, index, scale) \
    (Ints)(_mm256_i32gather_epi32(reinterpret_cast<const int *>(base), (__m256i)(index), scale))
namespace avx2 {
#include "context_rows_vector.h"
}
#undef LATENTSEG_TARGET
#undef LATENTSEG_WIDTH
#undef LATENTSEG_WIDEN
#undef LATENTSEG_NARROW
#undef LATENTSEG_GATHER

#define LATENTSEG_TARGET "avx512f,avx512bw,avx512vl"
#define LATENTSEG_WIDTH 16
#define LATENTSEG_WIDEN(bytes) \
    (Ints)(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes))))
#define LATENTSEG_NARROW(bytes, ints) \
    _mm_storeu_si128(reinterpret_cast<__m128i *>(bytes), _mm512_cvtepi32_epi8((__m512i)(ints)))
#define LATENTSEG_GATHER(base, index, scale) (Ints)(_mm512_i32gather_epi32((__m512i)(index), base, scale))
namespace avx512 {
#include "context_rows_vector.h"
}

#endif

}  // namespace

DecodeRow best_decode_row(bool refers) {
#if defined(LATENTSEG_X86_VECTORS)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return refers ? avx512::decode_row<true> : avx512::decode_row<false>;
    if (__builtin_cpu_supports("avx2")) return refers ? avx2::decode_row<true> : avx2::decode_row<false>;
#endif
    return refers ? decode_row_plain<true> : decode_row_plain<false>;
}

}  // namespace latentseg
