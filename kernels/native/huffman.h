// Length-limited canonical Huffman codes. The Python twin is bitstream/huffman.py; both build the same bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace latentseg {

// Argued in bitstream/huffman.py.
inline constexpr int kMaxCodeBits = 12;
inline constexpr int kLevels = 256;
inline constexpr int kTableSize = 1 << kMaxCodeBits;

using Counts = std::array<uint64_t, kLevels>;
using Lengths = std::array<uint8_t, kLevels>;

// A table of a payload. `coded` is false when `single` is its only symbol; then lengths are all zero.
struct Code {
    Lengths lengths;
    uint8_t single;
    bool coded;
};

// Optimal lengths of at most 12 bits by package-merge. At least one count must not be zero.
Code make_code(const Counts &counts);

// Codes, right-aligned, by (length, symbol).
std::array<uint16_t, kLevels> canonical_codes(const Lengths &lengths);

// Appends a table's bytes.
void pack_lengths(const Code &code, std::vector<uint8_t> &out);

// Reads one table of symbols below 2^bits at `at`, moving `at` behind it. Throws std::invalid_argument unless it is a
// complete code.
Code unpack_lengths(const uint8_t *data, size_t size, size_t &at, int bits);

// For each value of the next 12 bits: code length | symbol << 8. `code` must be coded; `table` has kTableSize entries.
void fill_decode_table(const Code &code, uint16_t *table);

}  // namespace latentseg
