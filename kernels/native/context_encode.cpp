#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "context.h"
#include "context_head.h"
#include "context_model.h"
#include "machine.h"

namespace latentseg {

static_assert(std::endian::native == std::endian::little, "the stores below are written for little-endian machines");

namespace {

constexpr int kInterleave = 4;  // lanes coded side by side: each waits for its own state most of the time

constexpr size_t kAhead = 2;      // W and WW of a row's first symbol

// Where the tables say that a frame saves less than so many bits a lane by the frame before, both ways are tried.
constexpr int kTryBothBits = 32;

struct Tile {
    size_t top, left, rows, columns;
};

std::vector<Tile> cut(const TileGeometry &g) {
    std::vector<Tile> tiles;
    for (size_t top = 0; top < g.height; top += g.rows)
        for (size_t left = 0; left < g.width; left += g.columns)
            tiles.push_back({top, left, std::min(g.rows, g.height - top), std::min(g.columns, g.width - left)});
    return tiles;
}

// Work space of one channel; tiles lie in it one behind the other.
struct Scratch {
    std::vector<int8_t> errors;
    std::vector<uint8_t> levels;
    std::vector<int8_t> best_errors;   // of the way to code it that has been the cheapest so far
    std::vector<uint8_t> best_levels;
    std::vector<uint8_t> sums;         // about each place in the frame before, in raster order
    std::vector<uint8_t> around[2];  // symbols or |e| of two rows of a tile, with what their ends find about them
    std::vector<uint32_t> bits;      // a symbol's bits | how many << 24
};

// The signed residue of difference mod 2 * half.
inline int16_t residue(int difference, int half) {
    return static_cast<int16_t>(((difference + half) & (2 * half - 1)) - half);
}

LATENTSEG_CLONES void previous_row(const uint8_t *q, const uint8_t *before, size_t n, int half,
                                   int8_t *__restrict errors) {
    for (size_t i = 0; i < n; ++i) errors[i] = static_cast<int8_t>(residue(q[i] - before[i], half));
}

LATENTSEG_CLONES void centred_row(const uint8_t *q, size_t n, int centre, int half,
                                  int8_t *__restrict errors) {
    for (size_t i = 0; i < n; ++i) errors[i] = static_cast<int8_t>(residue(q[i] - centre, half));
}

// Returns the sum of |e|.
LATENTSEG_CLONES uint32_t predicted_row(const uint8_t *here, const uint8_t *north, const uint8_t *north_west, size_t n,
                                        int half, int8_t *__restrict errors) {
    const uint8_t *west = here - 1;
    uint32_t sum = 0;
    for (size_t i = 0; i < n; ++i) {
        const int16_t w = west[i], v = north[i];
        const int16_t low = std::min(w, v), high = std::max(w, v), slope = static_cast<int16_t>(w + v - north_west[i]);
        const int16_t e = residue(here[i] - std::max(low, std::min(high, slope)), half);
        errors[i] = static_cast<int8_t>(e);
        sum += static_cast<uint16_t>(e < 0 ? -e : e);
    }
    return sum;
}

// Errors of a channel's tiles against the median prediction. Returns the sum of |e|.
uint64_t predict(const uint8_t *q, size_t width, const std::vector<Tile> &tiles, int centre, int half, Scratch &s) {
    uint64_t sum = 0;
    int8_t *errors = s.errors.data();
    for (const Tile &t : tiles) {
        for (size_t r = 0; r < t.rows; ++r, errors += t.columns) {
            uint8_t *here = s.around[r & 1].data() + kAhead;
            const uint8_t *above = s.around[~r & 1].data() + kAhead;
            std::memcpy(here, q + (t.top + r) * width + t.left, t.columns);
            // W and N are one symbol in the first row and column: it is the median, whatever NW is.
            here[-1] = r ? above[0] : static_cast<uint8_t>(centre);
            sum += predicted_row(here, r ? above : here - 1, r ? above - 1 : here - 1, t.columns, half, errors);
        }
    }
    return sum;
}

template <bool kRemembers>
LATENTSEG_INLINE void find_row(const uint8_t *here, const uint8_t *north, const uint8_t *north_east,
                               [[maybe_unused]] const uint8_t *sums, size_t n, uint8_t *__restrict levels) {
    const uint8_t *west = here - 1, *two_west = here - 2;
    for (size_t i = 0; i < n; ++i) {
        int m = 2 * (west[i] + north[i]) + two_west[i] + north_east[i] + 1;
        if constexpr (kRemembers) m += sums[i];
        // floor(2 log2 m) is the exponent of m * m, which a float holds exactly.
        const int exponent = (std::bit_cast<int32_t>(static_cast<float>(m * m)) >> 23) - 127;
        levels[i] = static_cast<uint8_t>(std::min(exponent, kActivityLevels - 1));
    }
}

LATENTSEG_CLONES void level_row(const uint8_t *here, const uint8_t *north, const uint8_t *north_east, size_t n,
                                uint8_t *__restrict levels) {
    find_row<false>(here, north, north_east, nullptr, n, levels);
}

LATENTSEG_CLONES void remembering_row(const uint8_t *here, const uint8_t *north, const uint8_t *north_east,
                                      const uint8_t *sums, size_t n, uint8_t *__restrict levels) {
    find_row<true>(here, north, north_east, sums, n, levels);
}

// sums: about each place in the frame before, or null.
void find_levels(const std::vector<Tile> &tiles, int start, const uint8_t *sums, size_t width, Scratch &s) {
    const int8_t *e = s.errors.data();
    uint8_t *levels = s.levels.data();
    for (const Tile &t : tiles) {
        for (size_t r = 0; r < t.rows; ++r, e += t.columns, levels += t.columns) {
            uint8_t *here = s.around[r & 1].data() + kAhead;
            const uint8_t *above = s.around[~r & 1].data() + kAhead;
            here[-2] = here[-1] = r ? above[0] : static_cast<uint8_t>(start);
            for (size_t i = 0; i < t.columns; ++i) here[i] = static_cast<uint8_t>(e[i] < 0 ? -e[i] : e[i]);
            here[t.columns] = here[t.columns - 1];
            const uint8_t *north = r ? above : here - 1, *north_east = r ? above + 1 : here - 1;
            if (sums)
                remembering_row(here, north, north_east, sums + (t.top + r) * width + t.left, t.columns, levels);
            else
                level_row(here, north, north_east, t.columns, levels);
        }
    }
}

// Doubles hold these sums exactly (below 2^26 * 2^13), and every machine adds several of them at once.
LATENTSEG_CLONES void add_costs(const uint16_t *costs, double count, double *sums) {
    for (int t = 0; t < kContextTables; ++t) sums[t] += count * costs[t];
}

struct Fit {
    int f = 0, g = 0;
    double cost = -1;  // in 1/256 bit; a whole number
};

// The (f, g) whose tables code the errors with the fewest bits; the first of equals.
Fit fit(const ContextModel &model, const Scratch &s, size_t n) {
    // Two histograms, for the same reason as in put_channel.
    static constexpr int kCells = kActivityLevels * kErrors;
    std::vector<uint32_t> counts(2 * kCells);
    for (size_t i = 0; i < n; ++i)
        ++counts[(i & 1) * kCells + s.levels[i] * kErrors + static_cast<uint8_t>(s.errors[i])];
    double sums[kActivityLevels][kContextTables] = {};
    int occupied[kActivityLevels], levels = 0;
    for (int level = 0; level < kActivityLevels; ++level) {
        bool any = false;
        for (int e = 0; e < kErrors; ++e) {
            const uint32_t count = counts[level * kErrors + e] + counts[kCells + level * kErrors + e];
            if (!count) continue;
            any = true;
            add_costs(model.costs[e], count, sums[level]);
        }
        if (any) occupied[levels++] = level;
    }
    Fit best;
    for (int f = 0; f < kSteps; ++f)
        for (int g = 0; g < kSteps; ++g) {
            double cost = 0;
            for (int i = 0; i < levels; ++i) cost += sums[occupied[i]][model.map[f][g][occupied[i]]];
            if (best.cost < 0 || cost < best.cost) best = {f, g, cost};
        }
    return best;
}

// Goes through K lanes of n symbols each, one behind the other, from their last symbols to their first ones. Leaves
// each symbol's bits in `bits`, each lane's state in states, and its length in bits in sizes.
template <int K>
void code_lanes(const ContextModel &model, const uint8_t *map, const int8_t *errors, const uint8_t *levels, size_t n,
                uint32_t *bits, uint32_t *states, size_t *sizes) {
    uint32_t state[K];
    size_t size[K];
    for (int k = 0; k < K; ++k) {
        state[k] = kStates;
        size[k] = kStateBits;
    }
    for (size_t i = n; i--;) {
        for (int k = 0; k < K; ++k) {
            const size_t at = static_cast<size_t>(k) * n + i;
            const auto error = static_cast<uint8_t>(errors[at]);
            const int table = map[levels[at]];
            const CodingStep step = model.coding[table][error];
            const uint32_t fresh = (state[k] + step.fresh) >> 16, used = fresh + step.escape;
            const uint32_t raw = error & ((1u << step.escape) - 1);
            bits[at] = (state[k] & ((1u << fresh) - 1)) | raw << fresh | used << 24;
            size[k] += used;
            state[k] = model.next[table][step.find + static_cast<int>(state[k] >> fresh)];
        }
    }
    std::copy_n(state, K, states);
    std::copy_n(size, K, sizes);
}

// Writes a lane; may touch 8 bytes behind it.
void write_lane(uint32_t state, const uint32_t *bits, size_t n, uint8_t *out) {
    uint64_t acc = state - kStates;
    unsigned held = kStateBits;
    const auto put = [&](uint32_t entry) {
        acc |= uint64_t{entry & 0xffffff} << held;
        held += entry >> 24;
    };
    const auto flush = [&] {
        std::memcpy(out, &acc, 8);
        out += held >> 3;
        acc >>= held & ~7u;
        held &= 7;
    };
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {  // 11 + 2 * 19 <= 63
        put(bits[i]);
        put(bits[i + 1]);
        flush();
    }
    if (i < n) put(bits[i]);
    flush();
}

// What a payload is put together from.
struct Parts {
    std::vector<Channel> channels;
    std::vector<uint32_t> sizes;  // of each lane
    std::vector<uint8_t> lanes;
    size_t used = 0;  // of lanes, which has room behind
    double saved = 0;  // by the frame before, in 1/256 bit
};

void put_lanes(const ContextModel &model, const uint8_t *map, const std::vector<Tile> &tiles, Scratch &s,
               Parts &parts) {
    size_t first = 0;
    for (size_t t = 0; t < tiles.size();) {
        const size_t n = tiles[t].rows * tiles[t].columns;
        size_t alike = 1;
        while (alike < kInterleave && t + alike < tiles.size() &&
               tiles[t + alike].rows * tiles[t + alike].columns == n)
            ++alike;
        uint32_t states[kInterleave];
        size_t sizes[kInterleave];
        s.bits.resize(std::max(s.bits.size(), alike * n));
        const auto code = alike == kInterleave ? code_lanes<kInterleave> : code_lanes<1>;
        if (alike < kInterleave) alike = 1;
        code(model, map, s.errors.data() + first, s.levels.data() + first, n, s.bits.data(), states, sizes);
        for (size_t k = 0; k < alike; ++k) {
            const size_t bytes = (sizes[k] + 7) / 8;
            if (parts.lanes.size() < parts.used + bytes + 16)
                parts.lanes.resize(2 * parts.lanes.size() + bytes + 16);
            write_lane(states[k], s.bits.data() + k * n, n, parts.lanes.data() + parts.used);
            parts.used += bytes;
            parts.sizes.push_back(static_cast<uint32_t>(bytes));
        }
        first += alike * n;
        t += alike;
    }
}

// Coder 3's planes: of the frame before, null in a key frame; and absolute errors of this one, null under coder 2.
struct Planes {
    History before{nullptr, nullptr};
    uint8_t *errors = nullptr;
};

// What the best of the ways to code a channel is, and the first one's cost. Leaves errors and levels of the best in s.
struct Choice {
    Mode mode;
    Fit fit;
    double first_cost;
};

// s.errors: of `alone`, which refers to no frame. before: of this channel.
Choice choose(const ContextModel &model, const uint8_t *q, const TileGeometry &g, const std::vector<Tile> &tiles,
              Mode alone, const History &before, Scratch &s) {
    const size_t n = g.height * g.width;
    const auto try_mode = [&](Mode mode) {
        find_levels(tiles, prediction(mode) == Mode::predicted ? kStartError : 0,
                    remembers(mode) ? s.sums.data() : nullptr, g.width, s);
        return fit(model, s, n);
    };
    const Fit first = try_mode(alone);
    Choice best{alone, first, first.cost};
    if (!before.symbols) return best;

    s.best_errors = s.errors;
    s.best_levels = s.levels;
    for (size_t y = 0; y < g.height; ++y) {
        const uint8_t *here = before.errors + y * g.width;
        sum_around(here, y ? here - g.width : here, y + 1 < g.height ? here + g.width : here, g.width, 0, g.width,
                   s.sums.data() + y * g.width);
    }
    const auto consider = [&](Mode mode) {
        const Fit found = try_mode(mode);
        if (found.cost >= best.fit.cost) return;
        best = {mode, found, first.cost};
        s.best_errors = s.errors;
        s.best_levels = s.levels;
    };
    consider(remembering(alone));
    int8_t *errors = s.errors.data();
    for (const Tile &t : tiles)
        for (size_t r = 0; r < t.rows; ++r, errors += t.columns) {
            const size_t at = (t.top + r) * g.width + t.left;
            previous_row(q + at, before.symbols + at, t.columns, 1 << (g.bits - 1), errors);
        }
    consider(Mode::previous);
    consider(remembering(Mode::previous));
    s.errors.swap(s.best_errors);
    s.levels.swap(s.best_levels);
    return best;
}

void put_channel(const ContextModel &model, const uint8_t *q, const TileGeometry &g, const std::vector<Tile> &tiles,
                 const Planes &planes, Scratch &s, Parts &parts) {
    const size_t n = g.height * g.width;
    // Four histograms: a run of one symbol would wait for its own store otherwise.
    uint32_t part[4][256] = {}, counts[256];
    for (size_t i = 0; i < n; ++i) ++part[i & 3][q[i]];
    for (int v = 0; v < 256; ++v) counts[v] = part[0][v] + part[1][v] + part[2][v] + part[3][v];
    const auto describe = [&](Mode mode, int f, int g, int centre) {
        parts.channels.push_back(
            {mode, static_cast<uint8_t>(f), static_cast<uint8_t>(g), static_cast<uint8_t>(centre)});
    };
    if (counts[q[0]] == n) {
        if (planes.errors) std::fill_n(planes.errors, n, uint8_t{0});
        return describe(Mode::constant, 0, 0, q[0]);
    }

    int centre = 0;
    for (size_t until = counts[0]; 2 * until < n; until += counts[centre]) ++centre;
    const int half = 1 << (g.bits - 1);
    uint64_t centred_sum = 0;
    for (int v = 0; v < 256; ++v)
        centred_sum += uint64_t{counts[v]} * static_cast<uint64_t>(std::abs(residue(v - centre, half)));
    const bool predicted = predict(q, g.width, tiles, centre, half, s) < centred_sum;
    if (!predicted) {
        int8_t *errors = s.errors.data();
        for (const Tile &t : tiles)
            for (size_t r = 0; r < t.rows; ++r, errors += t.columns)
                centred_row(q + (t.top + r) * g.width + t.left, t.columns, centre, half, errors);
    }
    const auto [mode, best, first_cost] =
        choose(model, q, g, tiles, predicted ? Mode::predicted : Mode::centred, planes.before, s);
    parts.saved += first_cost - best.cost;
    describe(mode, best.f, best.g, centre);
    put_lanes(model, model.map[best.f][best.g], tiles, s, parts);
    if (!planes.errors) return;
    const int8_t *errors = s.errors.data();
    for (const Tile &t : tiles)
        for (size_t r = 0; r < t.rows; ++r, errors += t.columns)
            for (size_t i = 0; i < t.columns; ++i)
                planes.errors[(t.top + r) * g.width + t.left + i] =
                    static_cast<uint8_t>(errors[i] < 0 ? -errors[i] : errors[i]);
}

// Appends a frame's channels and lanes to what the payload has so far.
Parts put_frame(const uint8_t *q, const TileGeometry &g, const Planes &planes, std::vector<uint8_t> &payload) {
    const size_t n = g.height * g.width;
    const std::vector<Tile> tiles = cut(g);
    Scratch scratch;
    scratch.errors.resize(n);
    scratch.levels.resize(n);
    if (planes.before.symbols) scratch.sums.resize(n);
    for (auto &row : scratch.around) row.resize(kAhead + std::min(g.columns, g.width) + 1);
    Parts parts;
    for (size_t channel = 0; channel < g.channels; ++channel) {
        Planes own;
        if (planes.before.symbols)
            own.before = {planes.before.symbols + channel * n, planes.before.errors + channel * n};
        if (planes.errors) own.errors = planes.errors + channel * n;
        put_channel(context_model(), q + channel * n, g, tiles, own, scratch, parts);
    }
    write_head(parts.channels, parts.sizes, tiles.size(), g.bits, payload);
    payload.insert(payload.end(), parts.lanes.begin(), parts.lanes.begin() + static_cast<std::ptrdiff_t>(parts.used));
    return parts;
}

}  // namespace

std::vector<uint8_t> context_encode(const uint8_t *q, const TileGeometry &g, const uint8_t *scales,
                                    size_t scale_bytes) {
    std::vector<uint8_t> payload(scales, scales + scale_bytes);
    put_frame(q, g, {}, payload);
    return payload;
}

std::vector<uint8_t> inter_encode(const uint8_t *q, const TileGeometry &g, const uint8_t *scales, size_t scale_bytes,
                                  const History *before, uint8_t *errors) {
    const auto begin = [&](uint8_t first) {
        std::vector<uint8_t> payload{first};
        payload.insert(payload.end(), scales, scales + scale_bytes);
        return payload;
    };
    std::vector<uint8_t> inter;
    if (before) {
        inter = begin(1);
        const Parts parts = put_frame(q, g, {*before, errors}, inter);
        if (parts.saved > 256.0 * kTryBothBits * static_cast<double>(parts.sizes.size())) return inter;
    }
    std::vector<uint8_t> key = begin(0), key_errors(before ? g.channels * g.height * g.width : 0);
    put_frame(q, g, {{nullptr, nullptr}, before ? key_errors.data() : errors}, key);
    if (before && inter.size() < key.size()) return inter;
    std::copy(key_errors.begin(), key_errors.end(), errors);
    return key;
}

}  // namespace latentseg
