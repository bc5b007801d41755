#include <algorithm>
#include <bit>
#include <string>

#include "entropy.h"
#include "huffman.h"
#include "payload.h"
#include "scaling.h"

namespace latentseg {

static_assert(std::endian::native == std::endian::little, "the loads below are written for little-endian machines");

namespace {

// Lanes that one core decodes side by side: each waits for its own table look-up most of the time.
constexpr int kInterleave = 8;
constexpr int kSymbolsPerLoad = 4;  // 4 * 12 bits <= the 57 that an unaligned 8-byte load is sure to bring

struct Lane {
    const uint8_t *data;    // its bytes; 8 more can be read behind them
    size_t bytes;
    size_t first, count;    // symbols, in raster order
    const uint16_t *table;  // kTableSize entries; null: all symbols are `single`
    uint8_t single;
    size_t number;
};

// Where a lane's symbols go: as they are, or through the value table of the lane's channel.
struct SymbolSink {
    using Value = uint8_t;
    uint8_t *out;
    struct Map {
        uint8_t operator[](uint32_t symbol) const { return static_cast<uint8_t>(symbol); }
    };
    Map map(const Lane &) const { return {}; }
};

struct FloatSink {
    using Value = float;
    float *out;
    const float *values;      // 256 a range
    size_t symbols_per_range; // how many symbols in raster order share a range
    const float *map(const Lane &lane) const { return values + 256 * (lane.first / symbols_per_range); }
};

bool ends_well(const Lane &lane, size_t bit) {
    if ((bit + 7) / 8 != lane.bytes) return false;
    // Padding: the bits of the last byte behind the last code.
    return bit % 8 == 0 || (lane.data[bit / 8] & (255 >> bit % 8)) == 0;
}

// Decodes K lanes of equal count. Returns false when one does not end where its length says. Whatever the bytes are,
// reads stay within lane.bytes + 8 and writes within count: a bit position that runs away is held at the lane's end.
template <int K, class Sink>
bool decode_group(const Lane *const *lanes, const Sink &sink, size_t &bad_lane) {
    typename Sink::Value *out[K];
    decltype(sink.map(*lanes[0])) map[K];
    const uint8_t *data[K];
    const uint16_t *table[K];
    size_t bit[K], end[K];
    const size_t count = lanes[0]->count;
    for (int k = 0; k < K; ++k) {
        out[k] = sink.out + lanes[k]->first;
        map[k] = sink.map(*lanes[k]);
        data[k] = lanes[k]->data;
        table[k] = lanes[k]->table;
        bit[k] = 0;
        end[k] = lanes[k]->bytes;
    }
    size_t i = 0;
    for (; i + kSymbolsPerLoad <= count; i += kSymbolsPerLoad) {
        for (int k = 0; k < K; ++k) {
            uint64_t window = load_be64(data[k] + std::min(bit[k] >> 3, end[k])) << (bit[k] & 7);
            uint32_t used = 0;
            for (int j = 0; j < kSymbolsPerLoad; ++j) {
                const uint32_t entry = table[k][window >> (64 - kMaxCodeBits)];
                window <<= entry & 63;  // the length is all there is in the low byte
                used += entry;
                out[k][i + j] = map[k][entry >> 8];
            }
            bit[k] += used & 255;
        }
    }
    for (; i < count; ++i) {
        for (int k = 0; k < K; ++k) {
            const uint64_t window = load_be64(data[k] + std::min(bit[k] >> 3, end[k])) << (bit[k] & 7);
            const uint32_t entry = table[k][window >> (64 - kMaxCodeBits)];
            bit[k] += entry & 255;
            out[k][i] = map[k][entry >> 8];
        }
    }
    for (int k = 0; k < K; ++k) {
        if (ends_well(*lanes[k], bit[k])) continue;
        bad_lane = lanes[k]->number;
        return false;
    }
    return true;
}

// Lanes taken apart from a payload, and what they point to.
struct Plan {
    std::vector<Lane> lanes;
    std::vector<const Lane *> coded;  // those with bits, longest first
    std::vector<uint16_t> tables;
    std::vector<uint8_t> tail;        // the last lanes' bytes, with room to read behind them
    std::vector<float> ranges;        // lo, hi in turn: 1 or C pairs
};

Plan make_plan(const uint8_t *payload, size_t size, const Geometry &g) {
    Plan plan;
    size_t at = 0;
    plan.ranges = read_ranges(payload, size, g, at);

    const size_t segments = g.table_a_channel ? g.channels : 1, n = g.symbols / segments;
    std::vector<Code> codes;
    size_t coded_tables = 0;
    for (size_t t = 0; t < segments; ++t) {
        codes.push_back(unpack_lengths(payload, size, at, g.bits));
        coded_tables += codes.back().coded;
    }
    plan.tables.resize(coded_tables * kTableSize);
    uint16_t *next_table = plan.tables.data();

    const size_t lanes_a_segment = (n + g.lane_symbols - 1) / g.lane_symbols;
    // Each coded lane has at least one byte of length in the payload: more lanes than bytes is a lie.
    if (coded_tables * lanes_a_segment > size) damaged("it is too short for its lanes");
    plan.lanes.reserve(coded_tables * lanes_a_segment + (segments - coded_tables));
    size_t number = 0, total = 0;
    for (size_t t = 0; t < segments; ++t) {
        if (!codes[t].coded) {
            plan.lanes.push_back({nullptr, 0, t * n, n, nullptr, codes[t].single, number});
            number += lanes_a_segment;
            continue;
        }
        fill_decode_table(codes[t], next_table);
        for (size_t first = 0; first < n; first += g.lane_symbols) {
            const size_t bytes = read_number(payload, size, at);
            total += bytes;
            plan.lanes.push_back(
                {nullptr, bytes, t * n + first, std::min(g.lane_symbols, n - first), next_table, 0, number++});
        }
        next_table += kTableSize;
    }
    if (total != size - at)
        damaged("lanes of " + std::to_string(total) + " bytes behind byte " + std::to_string(at) + ", but it has " +
                std::to_string(size));

    // Loads may reach 8 bytes behind a lane; the last lanes are copied to where that is allowed.
    size_t tail_from = size;
    for (Lane &lane : plan.lanes) {
        if (!lane.table) continue;
        if (at + lane.bytes + 8 > size && tail_from == size) {
            tail_from = at;
            plan.tail.assign(payload + at, payload + size);
            plan.tail.resize(plan.tail.size() + 8);
        }
        lane.data = at >= tail_from ? plan.tail.data() + (at - tail_from) : payload + at;
        at += lane.bytes;
        plan.coded.push_back(&lane);
    }
    // At most two lengths of lane exist a segment: equal ones come together, and can be interleaved.
    std::stable_sort(plan.coded.begin(), plan.coded.end(),
                     [](const Lane *a, const Lane *b) { return a->count > b->count; });
    return plan;
}

// Groups of up to kInterleave lanes of equal count: (first, how many) in `coded`.
std::vector<std::pair<size_t, int>> make_groups(const std::vector<const Lane *> &coded) {
    std::vector<std::pair<size_t, int>> groups;
    for (size_t i = 0; i < coded.size();) {
        int k = 1;
        while (k < kInterleave && i + k < coded.size() && coded[i + k]->count == coded[i]->count) ++k;
        k = k == kInterleave ? k : k >= 4 ? 4 : k >= 2 ? 2 : 1;
        groups.push_back({i, k});
        i += static_cast<size_t>(k);
    }
    return groups;
}

template <class Sink>
void run(const Plan &plan, const Sink &sink, int threads) {
    for (const Lane &lane : plan.lanes)
        if (!lane.table) {
            std::fill_n(sink.out + lane.first, lane.count, sink.map(lane)[lane.single]);
        }
    const auto groups = make_groups(plan.coded);
    decode_groups(groups.size(), threads, [&](size_t i, size_t) {
        const Lane *const *lanes = plan.coded.data() + groups[i].first;
        size_t bad = SIZE_MAX;
        switch (groups[i].second) {
            case kInterleave: decode_group<kInterleave>(lanes, sink, bad); break;
            case 4: decode_group<4>(lanes, sink, bad); break;
            case 2: decode_group<2>(lanes, sink, bad); break;
            default: decode_group<1>(lanes, sink, bad);
        }
        return bad;
    });
}

}  // namespace

void decode_symbols(const uint8_t *payload, size_t size, const Geometry &g, uint8_t *out, int threads) {
    run(make_plan(payload, size, g), SymbolSink{out}, threads);
}

void decode_floats(const uint8_t *payload, size_t size, const Geometry &g, float *out, int threads) {
    const Plan plan = make_plan(payload, size, g);
    const size_t ranges = plan.ranges.size() / 2, per_range = g.symbols / ranges;
    std::vector<float> values(256 * ranges);
    if (g.scaling == Scaling::codebook) {
        std::copy_n(g.values, 256, values.data());
    } else {
        for (size_t i = 0; i < ranges; ++i)
            value_table((1 << g.bits) - 1, plan.ranges[2 * i], plan.ranges[2 * i + 1], values.data() + 256 * i);
    }
    if (ranges == 1 || g.table_a_channel) {
        run(plan, FloatSink{out, values.data(), per_range}, threads);
        return;
    }
    // One table, a range a channel: lanes run across channels, so the values come in a second step.
    std::vector<uint8_t> symbols(g.symbols);
    run(plan, SymbolSink{symbols.data()}, threads);
    for (size_t i = 0; i < g.symbols; ++i) out[i] = values[256 * (i / per_range) + symbols[i]];
}

}  // namespace latentseg
