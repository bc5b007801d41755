// The model of coders 2 and 3: fixed code tables, and the rule that picks one for each symbol (docs/format.md). The Python
// twin is bitstream/context_model.py; both build the same numbers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace latentseg {

inline constexpr int kStateBits = 11;
inline constexpr int kStates = 1 << kStateBits;
inline constexpr int kContextTables = 44;
inline constexpr int kSteps = 48;  // of f and of g
inline constexpr int kActivityLevels = 16;
inline constexpr int kErrors = 256;
inline constexpr int kEscapeBits = 8;
inline constexpr int kSymbolBits = kStateBits + kEscapeBits;  // the most that one symbol takes
inline constexpr int kStartError = 8;  // what the first symbol of a lane finds about it in a predicted channel

// Of a channel. Frames that refer to the one before have those from `previous` on, too: by the symbol that it has at
// the same place; and centred, predicted and previous with tables that follow its errors as well (kRemembering more).
enum class Mode : uint8_t { constant = 0, centred = 1, predicted = 2, previous = 3 };
inline constexpr int kRemembering = 3;
inline constexpr int kMostAround = 255;  // of its errors about a place: levels beyond are one

inline bool remembers(Mode mode) { return mode > Mode::previous; }
inline Mode remembering(Mode mode) { return static_cast<Mode>(static_cast<int>(mode) + kRemembering); }
// What predicts under a mode.
inline Mode prediction(Mode mode) {
    return remembers(mode) ? static_cast<Mode>(static_cast<int>(mode) - kRemembering) : mode;
}

// How to code an error: with c states of its token, from a state X in [kStates, 2 * kStates).
struct CodingStep {
    uint32_t fresh;   // (X + fresh) >> 16 is the number of bits to give off
    int16_t find;     // next[find + (X without those bits)] is the next X
    uint16_t escape;  // bits of the error itself: 0, or kEscapeBits
};

struct ContextModel {
    // Bits 0..10: the next state before fresh bits; 11..14: how many of those; 15..18: how many bits of an escaped
    // error follow (0 or 8); 19..26: the error, as a signed byte (0 with an escape).
    uint32_t decoding[kContextTables * kStates];
    uint16_t next[kContextTables][kStates];
    CodingStep coding[kContextTables][kErrors];     // by the error as an unsigned byte
    uint16_t costs[kErrors][kContextTables];        // in 1/256 bit; by the error as an unsigned byte
    uint8_t map[kSteps][kSteps][kActivityLevels];   // which table a level takes, by (f, g)
};

// Built at the first call.
const ContextModel &context_model();

// Sums of absolute errors about each place of one row of a channel, at most kMostAround: twice its own and its four
// neighbours'; a neighbour outside the channel counts as the place itself. north, south: the rows above and below, or
// `here` at the edge. Of n places from `first` on.
void sum_around(const uint8_t *here, const uint8_t *north, const uint8_t *south, size_t width, size_t first, size_t n,
                uint8_t *sums);

// CRC-32 over the decoding tables as little-endian numbers: docs/format.md states it.
uint32_t context_tables_crc();

}  // namespace latentseg
