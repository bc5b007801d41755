// The innermost loop of the decoder of coders 2 and 3, for several kinds of machine.
#pragma once

#include <cstdint>

namespace latentseg {

// Lanes that one core decodes side by side, in step: all of a group have equal tiles.
inline constexpr int kLanes = 32;

// A group of lanes while it is decoded. Places of lanes that it lacks stay where they are.
struct Group {
    alignas(64) uint32_t state[kLanes];
    alignas(64) uint32_t at[kLanes];         // the next bit
    alignas(64) uint32_t limit[kLanes];      // at does not go beyond
    alignas(64) int32_t predicted[kLanes];   // -1: by the median; 0: not
    alignas(64) int32_t centre[kLanes];      // 0 where something else predicts
    // Where the table of a level begins in the decoding tables: [(127 + level) & 31], the low bits of the exponent of a
    // float of twice the level.
    alignas(64) uint32_t tables[32][kLanes];
};

// Decodes one row. bits: the lanes' bytes, four of which can be read from any lane's limit.
// symbols, errors: [column][lane], of symbols and of |e|. They hold the row above and receive this one; errors has one
// column behind the last, which repeats it. In the first row, the first column holds what a lane starts with.
// top: the largest symbol.
// previous, around: of the frame before, [column][lane]: its symbols, 0 where they do not predict; sums of its errors, 0
// where no tables follow them. Null in a frame that refers to none.
using DecodeRow = void (*)(Group &group, const uint8_t *bits, const uint32_t *decoding, uint8_t *symbols,
                           uint8_t *errors, int columns, bool first, int top, const uint8_t *previous,
                           const uint8_t *around);

// The fastest that this machine can run; `refers`: for frames that refer to another.
DecodeRow best_decode_row(bool refers);

}  // namespace latentseg
