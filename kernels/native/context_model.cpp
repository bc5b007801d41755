#include "context_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>

#include "machine.h"

namespace latentseg {

namespace {

constexpr int kEscape = kErrors;  // its token

// 2^(16 + i/4), and 2^(16 + (i - 1/2)/4), rounded.
constexpr int64_t kQuarter[4] = {65536, 77936, 92682, 110218};
constexpr int64_t kBetween[4] = {60097, 71468, 84990, 101070};
// Twice a usual activity of each level.
constexpr int64_t kTwiceActivity[kActivityLevels] = {0, 1, 2, 4, 7, 11, 17, 25, 36, 52, 75, 107, 152, 216, 307, 500};

void fill_map(ContextModel &model) {
    int64_t edges[kContextTables - 1];
    for (int j = 1; j < kContextTables; ++j) edges[j - 1] = kBetween[j & 3] << ((j >> 2) + 5);
    for (int f = 0; f < kSteps; ++f)
        for (int g = 0; g < kSteps; ++g)
            for (int level = 0; level < kActivityLevels; ++level) {
                const int64_t scale =
                    (kQuarter[f & 3] << ((f >> 2) + 5)) + (kQuarter[g & 3] << (g >> 2)) * kTwiceActivity[level];
                model.map[f][g][level] =
                    static_cast<uint8_t>(std::upper_bound(std::begin(edges), std::end(edges), scale) - edges);
            }
}

// States of each token of a table: [e + 128], and the escape behind. The sums run in the order that the format states,
// so that each rounding is the same everywhere.
void fill_counts(int table, int *counts) {
    const double scale = static_cast<double>(kQuarter[2 * (table & 1)] << (table >> 1));
    double share[kErrors], sum = 0;
    for (int i = 0; i < kErrors; ++i) {
        const int64_t e = i - 128;
        const double root = scale / (scale + static_cast<double>(e * e << 23));
        share[i] = root * root;
        sum += share[i];
    }
    double running = 0;
    int before = 0, total = 0;
    bool escapes = false;
    for (int i = 0; i < kErrors; ++i) {
        share[i] = share[i] * kStates / sum;
        if (share[i] >= 1.0) running += share[i];
        escapes |= share[i] < 1.0;
        const int until = static_cast<int>(std::floor(running + 0.5));
        counts[i] = until - before;
        before = until;
    }
    counts[kEscape] = escapes ? std::max(1, kStates - before) : 0;
    for (int i = 0; i <= kEscape; ++i) total += counts[i];
    counts[128] += kStates - total;
}

void fill_table(ContextModel &model, int table) {
    int counts[kErrors + 1], first[kErrors + 1], seen[kErrors + 1] = {};
    fill_counts(table, counts);

    uint16_t token[kStates];
    int k = 0;
    for (int t = 0; t <= kEscape; ++t) {
        first[t] = k;
        for (int i = 0; i < counts[t]; ++i, ++k)
            token[k * ((kStates >> 1) + (kStates >> 3) + 3) % kStates] = static_cast<uint16_t>(t);
    }
    for (int place = 0; place < kStates; ++place) {
        const int t = token[place], rank = seen[t]++;
        const auto x = static_cast<uint32_t>(counts[t] + rank);
        const uint32_t fresh = kStateBits + 1 - static_cast<uint32_t>(std::bit_width(x));
        const uint32_t error = t == kEscape ? kEscapeBits << 15 : static_cast<uint32_t>((t - 128) & 255) << 19;
        model.decoding[table * kStates + place] = ((x << fresh) - kStates) | fresh << kStateBits | error;
        model.next[table][first[t] + rank] = static_cast<uint16_t>(kStates + place);
    }
    for (int i = 0; i < kErrors; ++i) {
        const int t = counts[i] ? i : kEscape, c = counts[t], byte = (i - 128) & 255;
        const int most = kStateBits + 1 - std::bit_width(static_cast<uint32_t>(c));
        // Below c << most, a state gives off one bit less.
        model.coding[table][byte] = {static_cast<uint32_t>((most << 16) - (c << most)),
                                     static_cast<int16_t>(first[t] - c),
                                     static_cast<uint16_t>(t == kEscape ? kEscapeBits : 0)};
        const double bits = std::nearbyint(256.0 * (kStateBits - std::log2(static_cast<double>(c))));
        model.costs[byte][table] = static_cast<uint16_t>(bits + (t == kEscape ? 256 * kEscapeBits : 0));
    }
}

}  // namespace

const ContextModel &context_model() {
    static const std::unique_ptr<const ContextModel> model = [] {
        auto made = std::make_unique<ContextModel>();
        fill_map(*made);
        for (int table = 0; table < kContextTables; ++table) fill_table(*made, table);
        return made;
    }();
    return *model;
}

LATENTSEG_CLONES void sum_around(const uint8_t *here, const uint8_t *north, const uint8_t *south, size_t width,
                                 size_t first, size_t n, uint8_t *sums) {
    const auto sum = [=](size_t x, size_t west, size_t east) {
        const auto t = static_cast<uint16_t>(2 * here[x] + north[x] + south[x] + here[west] + here[east]);
        return static_cast<uint8_t>(std::min<uint16_t>(t, kMostAround));
    };
    size_t x = first, end = first + n;
    if (x == 0 && n) {
        *sums++ = sum(0, 0, width > 1);
        ++x;
    }
    const size_t inner = std::min(end, width - 1);
    for (; x < inner; ++x) *sums++ = sum(x, x - 1, x + 1);
    if (x < end) *sums = sum(x, x - 1, x);
}

uint32_t context_tables_crc() {
    uint32_t crc = ~0u;
    for (const uint32_t entry : context_model().decoding)
        for (int byte = 0; byte < 4; ++byte) {
            crc ^= entry >> 8 * byte & 255;
            for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
    return ~crc;
}

}  // namespace latentseg
