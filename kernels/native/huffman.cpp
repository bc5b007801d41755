#include "huffman.h"

#include <algorithm>
#include <stdexcept>

namespace latentseg {

namespace {

// Nibbles behind the lengths 0 (absent) and 1..12.
constexpr int kRunAbsent = 13, kRunRepeat = 14, kRunAbsentLong = 15;

[[noreturn]] void damaged(const char *what) { throw std::invalid_argument(what); }

}  // namespace

Code make_code(const Counts &counts) {
    Code code{};
    int symbols[kLevels];
    int n = 0;
    for (int s = 0; s < kLevels; ++s)
        if (counts[s]) symbols[n++] = s;
    code.single = static_cast<uint8_t>(symbols[0]);
    code.coded = n > 1;
    if (!code.coded) return code;
    std::stable_sort(symbols, symbols + n, [&](int a, int b) { return counts[a] < counts[b]; });

    // Level by level, symbols and packages (two items of the level before) by weight; a symbol goes before a package
    // of its weight.
    uint64_t items[2 * kLevels], next[2 * kLevels];
    bool is_leaf[kMaxCodeBits][2 * kLevels];
    int size = n;
    for (int i = 0; i < n; ++i) {
        items[i] = counts[symbols[i]];
        is_leaf[0][i] = true;
    }
    for (int level = 1; level < kMaxCodeBits; ++level) {
        const int pairs = size / 2;
        int leaf = 0, pair = 0, at = 0;
        while (leaf < n || pair < pairs) {
            const uint64_t package = pair < pairs ? items[2 * pair] + items[2 * pair + 1] : 0;
            const bool take_leaf = pair == pairs || (leaf < n && counts[symbols[leaf]] <= package);
            is_leaf[level][at] = take_leaf;
            next[at++] = take_leaf ? counts[symbols[leaf++]] : package;
            pair += !take_leaf;
        }
        size = at;
        std::copy(next, next + size, items);
    }
    // The 2n - 2 lightest items of the last level, opened level by level: a symbol's code grows each time it shows up.
    int take = 2 * n - 2;
    for (int level = kMaxCodeBits - 1; level >= 0; --level) {
        int leaves = 0;
        for (int i = 0; i < take; ++i) leaves += is_leaf[level][i];
        for (int i = 0; i < leaves; ++i) ++code.lengths[symbols[i]];
        take = 2 * (take - leaves);
    }
    return code;
}

std::array<uint16_t, kLevels> canonical_codes(const Lengths &lengths) {
    std::array<uint16_t, kLevels> codes{};
    std::array<uint16_t, kMaxCodeBits + 2> next{};
    for (const uint8_t length : lengths) next[length + 1] += length > 0;
    // next[l]: the first code of length l.
    for (int length = 1; length <= kMaxCodeBits; ++length)
        next[length] = static_cast<uint16_t>((next[length - 1] + next[length]) << 1);
    for (int s = 0; s < kLevels; ++s)
        if (lengths[s]) codes[s] = next[lengths[s]]++;
    return codes;
}

void pack_lengths(const Code &code, std::vector<uint8_t> &out) {
    if (!code.coded) {
        out.insert(out.end(), {code.single, code.single});
        return;
    }
    int first = 0, last = kLevels - 1;
    while (!code.lengths[first]) ++first;
    while (!code.lengths[last]) --last;
    out.insert(out.end(), {static_cast<uint8_t>(first), static_cast<uint8_t>(last)});
    bool high = true;
    const auto put = [&](int nibble) {
        if (high)
            out.push_back(static_cast<uint8_t>(nibble << 4));
        else
            out.back() |= static_cast<uint8_t>(nibble);
        high = !high;
    };
    int s = first;
    while (s <= last) {
        const int value = code.lengths[s];
        int run = 1;
        while (s + run <= last && code.lengths[s + run] == value) ++run;
        if (value == 0) {
            run = std::min(run, 273);
            if (run >= 18) {
                put(kRunAbsentLong);
                put((run - 18) >> 4);
                put((run - 18) & 15);
            } else if (run >= 2) {
                put(kRunAbsent);
                put(run - 2);
            } else {
                put(0);
            }
        } else {
            put(value);
            const int repeats = std::min(run - 1, 18);
            if (repeats >= 3) {
                put(kRunRepeat);
                put(repeats - 3);
                run = 1 + repeats;
            } else {
                run = 1;
            }
        }
        s += run;
    }
}

Code unpack_lengths(const uint8_t *data, size_t size, size_t &at, int bits) {
    if (size - at < 2) damaged("payload damaged: it ends inside the code tables");
    Code code{};
    const int first = data[at], last = data[at + 1];
    at += 2;
    if (first > last || last >> bits) damaged("payload damaged: a code table has symbols out of range");
    code.single = static_cast<uint8_t>(first);
    code.coded = first != last;
    if (!code.coded) return code;
    size_t half = 2 * at;
    const auto nibble = [&]() -> int {
        if (half / 2 >= size) damaged("payload damaged: it ends inside the code tables");
        const int byte = data[half / 2];
        return half++ % 2 ? byte & 15 : byte >> 4;
    };
    int s = first, previous = 0;
    while (s <= last) {
        int value = nibble(), run = 1;
        if (value == kRunAbsent) {
            value = 0;
            run = 2 + nibble();
        } else if (value == kRunAbsentLong) {
            value = 0;
            run = 18 + (nibble() << 4);
            run += nibble();
        } else if (value == kRunRepeat) {
            value = previous;
            run = 3 + nibble();
        }
        if (s + run > last + 1) damaged("payload damaged: a run of lengths passes the last symbol");
        std::fill_n(code.lengths.begin() + s, run, static_cast<uint8_t>(value));
        previous = value;
        s += run;
    }
    if (half % 2 && nibble() != 0) damaged("payload damaged: padding of a code table is not zero");
    at = half / 2;
    int kraft = 0;
    for (const uint8_t length : code.lengths) kraft += length ? kTableSize >> length : 0;
    if (!code.lengths[first] || !code.lengths[last] || kraft != kTableSize)
        damaged("payload damaged: a code table is not a complete prefix code");
    return code;
}

void fill_decode_table(const Code &code, uint16_t *table) {
    // Codes in the order (length, symbol), left-aligned to 12 bits, count up through the table.
    std::array<int, kMaxCodeBits + 2> start{};
    for (const uint8_t length : code.lengths) start[length + 1] += length ? kTableSize >> length : 0;
    for (int length = 1; length <= kMaxCodeBits; ++length) start[length + 1] += start[length];
    for (int s = 0; s < kLevels; ++s) {
        const int length = code.lengths[s];
        if (!length) continue;
        const int span = kTableSize >> length;
        std::fill_n(table + start[length], span, static_cast<uint16_t>(length | s << 8));
        start[length] += span;
    }
}

}  // namespace latentseg
