// decode_row for one kind of vector machine: context_rows.cpp includes this once for each, hence no guard.

typedef int32_t Ints __attribute__((vector_size(4 * LATENTSEG_WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * LATENTSEG_WIDTH)));
typedef float Floats __attribute__((vector_size(4 * LATENTSEG_WIDTH)));

template <bool kRefers>
__attribute__((target(LATENTSEG_TARGET))) void decode_row(Group &group, const uint8_t *bits, const uint32_t *decoding,
                                                          uint8_t *symbols, uint8_t *errors, int columns, bool first,
                                                          int top, [[maybe_unused]] const uint8_t *previous,
                                                          [[maybe_unused]] const uint8_t *around) {
    constexpr int kWidth = LATENTSEG_WIDTH, kVectors = kLanes / kWidth;
    // Across a row all of this stays in registers, as far as they suffice.
    Words state[kVectors], at[kVectors], limit[kVectors];
    Ints predicted[kVectors], centre[kVectors], lane[kVectors];
    Ints w[kVectors], nw[kVectors], aw[kVectors], aww[kVectors], ane[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        std::memcpy(&state[v], group.state + v * kWidth, sizeof(Words));
        std::memcpy(&at[v], group.at + v * kWidth, sizeof(Words));
        std::memcpy(&limit[v], group.limit + v * kWidth, sizeof(Words));
        std::memcpy(&predicted[v], group.predicted + v * kWidth, sizeof(Ints));
        std::memcpy(&centre[v], group.centre + v * kWidth, sizeof(Ints));
        w[v] = nw[v] = LATENTSEG_WIDEN(symbols + v * kWidth);
        aw[v] = aww[v] = ane[v] = LATENTSEG_WIDEN(errors + v * kWidth);
        for (int i = 0; i < kWidth; ++i) lane[v][i] = v * kWidth + i;
    }
    for (int c = 0; c < columns; ++c, symbols += kLanes, errors += kLanes) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            Ints n = w[v], an = aw[v];
            if (first) {
                ane[v] = aw[v];
            } else {
                n = LATENTSEG_WIDEN(symbols + v * kWidth);
                an = ane[v];
                ane[v] = LATENTSEG_WIDEN(errors + kLanes + v * kWidth);
            }
            Ints sum = aww[v] + ane[v] + (2 * an + 1) + 2 * aw[v];
            if constexpr (kRefers) sum += LATENTSEG_WIDEN(around + c * kLanes + v * kWidth);
            const Floats m = __builtin_convertvector(sum, Floats);
            // The exponent of m * m times kLanes.
            const Ints level = (((Ints)(m * m) >> 18) & (31 * kLanes)) | lane[v];
            const Ints table = LATENTSEG_GATHER(&group.tables[0][0], level, 4);
            const Words entry = (Words)LATENTSEG_GATHER(decoding, table + (Ints)state[v], 4);
            const Words word = (Words)LATENTSEG_GATHER(bits, at[v] >> 3, 1) >> (at[v] & 7);
            const Words fresh = entry >> 11 & 15;
            // The low `fresh` bits of an entry are 0.
            state[v] = (entry & (kStates - 1)) | (word & ~(~Words{} << fresh));
            const Ints escapes = (entry & (8 << 15)) != 0;
            const Words next = at[v] + fresh + (Words)(escapes & 8);
            at[v] = next < limit[v] ? next : limit[v];
            const Ints e = (escapes ? (Ints)(word >> fresh << 24) : (Ints)(entry << 5)) >> 24;
            const Ints low = w[v] < n ? w[v] : n, high = w[v] < n ? n : w[v], slope = w[v] + n - nw[v];
            const Ints bounded = slope < high ? slope : high, median = bounded > low ? bounded : low;
            nw[v] = n;
            Ints symbol = (median & predicted[v]) + centre[v] + e;
            if constexpr (kRefers) symbol += LATENTSEG_WIDEN(previous + c * kLanes + v * kWidth);
            w[v] = symbol & top;
            aww[v] = aw[v];
            aw[v] = e < 0 ? -e : e;
            LATENTSEG_NARROW(symbols + v * kWidth, w[v]);
            LATENTSEG_NARROW(errors + v * kWidth, aw[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
        std::memcpy(group.state + v * kWidth, &state[v], sizeof(Words));
        std::memcpy(group.at + v * kWidth, &at[v], sizeof(Words));
    }
}
