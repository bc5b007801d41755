#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "context.h"
#include "context_head.h"
#include "context_model.h"
#include "context_rows.h"
#include "machine.h"
#include "payload.h"
#include "scaling.h"

namespace latentseg {

static_assert(std::endian::native == std::endian::little, "the loads below are written for little-endian machines");

namespace {

// The activity, the sum about the place in the frame before and 1 are at most 6 * 128 + 255 + 1, their square 2^20.
constexpr int kExponents = 21;
static_assert(6 * 128 + kMostAround + 1 <= 1 << 10);
constexpr int kRoom = 8;  // bytes that loads may touch behind a lane, and the transposition behind a row

struct Lane {
    uint32_t offset, bytes;  // in the payload
    uint32_t channel;
    uint32_t rows, columns;
    size_t first;            // symbol, in the frame's raster order
    size_t number;
};

// Lanes of equal tiles, at most kLanes.
struct Batch {
    const Lane *lanes;
    size_t count;
};

// A payload taken apart.
struct Plan {
    std::vector<float> ranges;     // lo, hi in turn: 1 or C pairs
    std::vector<Channel> channels;
    std::vector<Lane> lanes[4];  // by the shape of their tile: short of columns, or of rows (2)
    std::vector<Batch> batches;
};

// lo, hi in turn to lo, step in turn.
void to_steps(std::vector<float> &ranges, int bits) {
    const float levels = static_cast<float>((1 << bits) - 1);
    for (size_t i = 0; i < ranges.size(); i += 2) ranges[i + 1] = (ranges[i + 1] - ranges[i]) / levels;
}

// refers: whether there are the modes of frames that refer to another.
Plan make_plan(const uint8_t *payload, size_t size, const TileGeometry &g, bool refers = false) {
    Plan plan;
    size_t at = 0;
    plan.ranges = read_ranges(payload, size, g, at);
    HeadReader reader(payload, size, at);
    plan.channels = read_channels(reader, g.channels, g.bits, refers ? remembering(Mode::previous) : Mode::predicted);

    const size_t down = (g.height + g.rows - 1) / g.rows, across = (g.width + g.columns - 1) / g.columns;
    size_t coded = 0;
    for (const Channel &channel : plan.channels) coded += channel.mode != Mode::constant;
    const int order = coded ? static_cast<int>(reader.take(kOrderBits)) : 0;
    // Each lane has at least a bit of length, and a byte of its own: more lanes than bytes is a lie.
    if (coded * down * across > reader.left()) damaged("it is too short for its lanes");
    plan.lanes[0].reserve(coded * (g.height / g.rows) * (g.width / g.columns));
    std::vector<int64_t> lengths(coded ? down * across : 0);
    size_t total = 0;
    for (size_t c = 0; c < g.channels; ++c) {
        if (plan.channels[c].mode == Mode::constant) continue;
        for (size_t tile = 0; tile < down * across; ++tile) {
            const size_t top = tile / across * g.rows, left = tile % across * g.columns;
            const size_t rows = std::min(g.rows, g.height - top), columns = std::min(g.columns, g.width - left);
            const int64_t bytes = lengths[tile] += reader.take_signed(order);
            const auto most = static_cast<int64_t>((rows * columns * kSymbolBits + kStateBits + 7) / 8);
            if (bytes < 1 || bytes > most)
                damaged("a lane of " + std::to_string(bytes) + " bytes, expected 1.." + std::to_string(most));
            const int shape = (columns < g.columns) + 2 * (rows < g.rows);
            plan.lanes[shape].push_back({static_cast<uint32_t>(total), static_cast<uint32_t>(bytes),
                                         static_cast<uint32_t>(c), static_cast<uint32_t>(rows),
                                         static_cast<uint32_t>(columns), (c * g.height + top) * g.width + left,
                                         c * down * across + tile});
            total += static_cast<size_t>(bytes);
        }
    }
    at = reader.finish();
    if (total != size - at)
        damaged("lanes of " + std::to_string(total) + " bytes behind byte " + std::to_string(at) + ", but it has " +
                std::to_string(size));
    for (auto &lanes : plan.lanes) {
        for (Lane &lane : lanes) lane.offset += static_cast<uint32_t>(at);
        for (size_t i = 0; i < lanes.size(); i += kLanes)
            plan.batches.push_back({lanes.data() + i, std::min<size_t>(kLanes, lanes.size() - i)});
    }
    // A batch takes as long as its tiles have symbols, whatever its bytes.
    std::stable_sort(plan.batches.begin(), plan.batches.end(), [](const Batch &a, const Batch &b) {
        return size_t{a.lanes->rows} * a.lanes->columns > size_t{b.lanes->rows} * b.lanes->columns;
    });
    return plan;
}

// Work space of one thread.
struct Scratch {
    std::vector<uint8_t> bits;             // a group's lanes, one behind the other
    std::vector<uint8_t> symbols, errors;  // [column][lane], of the row above and, where it has come, of this one
    std::vector<uint8_t> lines;            // [lane][column]
    std::vector<uint8_t> previous, around;  // [column][lane], of the frame before
    Group group;
};

// Coder 3's planes of this frame and of the one before; the latter's are null in a key frame, all under coder 2.
struct Planes {
    uint8_t *symbols = nullptr, *errors = nullptr;
    History before{nullptr, nullptr};
};

inline uint32_t load32(const uint8_t *p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}

// Eight rows of eight bytes, turned.
inline void transpose8(const uint8_t *in, size_t in_stride, uint8_t *out, size_t out_stride) {
    uint64_t v[8];
    for (size_t i = 0; i < 8; ++i) std::memcpy(v + i, in + i * in_stride, 8);
    const auto swap = [&v](int step, int shift, uint64_t mask) {
        for (int i = 0; i < 8; ++i) {
            if (i & step) continue;
            const uint64_t t = (v[i] >> shift ^ v[i + step]) & mask;
            v[i + step] ^= t;
            v[i] ^= t << shift;
        }
    };
    swap(4, 32, 0x00000000ffffffffu);
    swap(2, 16, 0x0000ffff0000ffffu);
    swap(1, 8, 0x00ff00ff00ff00ffu);
    for (size_t i = 0; i < 8; ++i) std::memcpy(out + i * out_stride, v + i, 8);
}

// [column][lane] to [lane][column], and back; of `count` lanes, in steps of eight.
void to_lines(const uint8_t *columns_of, size_t columns, size_t count, uint8_t *lines, size_t stride) {
    for (size_t k = 0; k < count; k += 8)
        for (size_t c = 0; c < columns; c += 8)
            transpose8(columns_of + c * kLanes + k, kLanes, lines + k * stride + c, stride);
}

void from_lines(const uint8_t *lines, size_t stride, size_t columns, size_t count, uint8_t *columns_of) {
    for (size_t k = 0; k < count; k += 8)
        for (size_t c = 0; c < columns; c += 8)
            transpose8(lines + k * stride + c, stride, columns_of + c * kLanes + k, kLanes);
}

LATENTSEG_CLONES void to_values(const uint8_t *line, size_t n, float step, float lo, float *out) {
    for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(line[i]) * step + lo;
}

// Where symbols go: as they are, through int2float with the range of their channel, or through a codebook.
struct SymbolSink {
    uint8_t *out;
    void put(const uint8_t *line, size_t n, uint32_t, size_t at) const { std::copy_n(line, n, out + at); }
    void fill(uint8_t symbol, size_t n, size_t, size_t at) const { std::fill_n(out + at, n, symbol); }
};

// The planes of coder 3 take symbols as they are.
struct NoSink {
    void put(const uint8_t *, size_t, size_t, size_t) const {}
    void fill(uint8_t, size_t, size_t, size_t) const {}
};

struct FloatSink {
    float *out;
    const float *ranges;  // lo, step in turn
    size_t channel_step;  // 2, or 0: one range for all
    void put(const uint8_t *line, size_t n, size_t channel, size_t at) const {
        const float *range = ranges + channel * channel_step;
        to_values(line, n, range[1], range[0], out + at);
    }
    void fill(uint8_t symbol, size_t n, size_t channel, size_t at) const {
        float value;
        const float *range = ranges + channel * channel_step;
        to_values(&symbol, 1, range[1], range[0], &value);
        std::fill_n(out + at, n, value);
    }
};

struct CodebookSink {
    float *out;
    const float *values;
    LookUp look_up;
    void put(const uint8_t *line, size_t n, size_t, size_t at) const { look_up(line, n, values, out + at); }
    void fill(uint8_t symbol, size_t n, size_t, size_t at) const { std::fill_n(out + at, n, values[symbol]); }
};

void start(const uint8_t *payload, const Plan &plan, const Batch &batch, Scratch &s) {
    const auto [lanes, count] = batch;
    const ContextModel &model = context_model();
    Group &group = s.group;
    uint32_t used = 0;
    for (size_t k = 0; k < kLanes; ++k) {
        Channel channel{Mode::centred, 0, 0, 0};
        uint32_t at = 0, bytes = 0;
        if (k < count) {
            channel = plan.channels[lanes[k].channel];
            bytes = lanes[k].bytes;
            at = used;
            std::memcpy(s.bits.data() + at, payload + lanes[k].offset, bytes);
            used += bytes;
        }
        const bool predicted = prediction(channel.mode) == Mode::predicted;
        group.at[k] = 8 * at;
        group.limit[k] = 8 * (at + bytes) + 1;
        group.predicted[k] = predicted ? -1 : 0;
        group.centre[k] = predicted ? 0 : channel.centre;
        for (int i = 0; i < kExponents; ++i)
            group.tables[(127 + i) & 31][k] =
                kStates * model.map[channel.f][channel.g][std::min(i, kActivityLevels - 1)];
        s.symbols[k] = channel.centre;
        s.errors[k] = predicted ? kStartError : 0;
    }
    std::memset(s.bits.data() + used, 0, kRoom);
    for (size_t k = 0; k < kLanes; ++k) {
        group.state[k] = k < count ? load32(s.bits.data() + group.at[k] / 8) & (kStates - 1) : 0;
        group.at[k] = std::min(group.at[k] + kStateBits, group.limit[k]);
    }
}

bool ends_well(const Group &group, const uint8_t *bits, size_t k) {
    const uint32_t at = group.at[k], end = group.limit[k] - 1;
    if (group.state[k] || at > end || end - at >= 8) return false;
    return at == end || bits[at / 8] >> at % 8 == 0;
}

// What the frame before has for one row of a batch.
void recall(const Plan &plan, const TileGeometry &g, const Batch &batch, size_t row, const History &before,
            size_t stride, Scratch &s) {
    const auto [lanes, count] = batch;
    const size_t columns = lanes[0].columns;
    const auto gather = [&](std::vector<uint8_t> &to, const auto &wanted, const auto &fill) {
        bool any = false;
        for (size_t k = 0; k < count; ++k) {
            uint8_t *line = s.lines.data() + k * stride;
            const bool this_one = wanted(plan.channels[lanes[k].channel].mode);
            any |= this_one;
            if (this_one)
                fill(lanes[k], line);
            else
                std::memset(line, 0, columns);
        }
        if (any)
            from_lines(s.lines.data(), stride, columns, count, to.data());
        else if (row == 0)
            std::memset(to.data(), 0, columns * kLanes);
    };
    gather(s.previous, [](Mode mode) { return prediction(mode) == Mode::previous; },
           [&](const Lane &lane, uint8_t *line) {
               std::memcpy(line, before.symbols + lane.first + row * g.width, columns);
           });
    gather(s.around, remembers, [&](const Lane &lane, uint8_t *line) {
        const size_t at = lane.first + row * g.width, left = at % g.width, y = at / g.width % g.height;
        const uint8_t *here = before.errors + (at - left);
        sum_around(here, y ? here - g.width : here, y + 1 < g.height ? here + g.width : here, g.width, left, columns,
                   line);
    });
}

// Returns the number of a damaged lane, or SIZE_MAX.
template <class Sink>
size_t decode_batch(const uint8_t *payload, const Plan &plan, const TileGeometry &g, const Batch &batch,
                    const Sink &sink, const Planes &planes, Scratch &s) {
    const auto [lanes, count] = batch;
    const size_t columns = lanes[0].columns, stride = (columns + 7) / 8 * 8;
    const bool refers = planes.before.symbols != nullptr;
    const DecodeRow decode_row = best_decode_row(refers);
    const uint32_t *decoding = context_model().decoding;
    start(payload, plan, batch, s);
    for (size_t r = 0; r < lanes[0].rows; ++r) {
        // What lies above right of the last column.
        if (r) std::memcpy(s.errors.data() + columns * kLanes, s.errors.data() + (columns - 1) * kLanes, kLanes);
        if (refers) recall(plan, g, batch, r, planes.before, stride, s);
        decode_row(s.group, s.bits.data(), decoding, s.symbols.data(), s.errors.data(), static_cast<int>(columns),
                   r == 0, (1 << g.bits) - 1, s.previous.data(), s.around.data());
        if (planes.symbols) {
            to_lines(s.errors.data(), columns, count, s.lines.data(), stride);
            for (size_t k = 0; k < count; ++k)
                std::memcpy(planes.errors + lanes[k].first + r * g.width, s.lines.data() + k * stride, columns);
        }
        to_lines(s.symbols.data(), columns, count, s.lines.data(), stride);
        for (size_t k = 0; k < count; ++k) {
            const uint8_t *line = s.lines.data() + k * stride;
            if (planes.symbols) std::memcpy(planes.symbols + lanes[k].first + r * g.width, line, columns);
            sink.put(line, columns, lanes[k].channel, lanes[k].first + r * g.width);
        }
    }
    size_t bad = SIZE_MAX;
    for (size_t k = 0; k < count; ++k)
        if (!ends_well(s.group, s.bits.data(), k)) bad = std::min(bad, lanes[k].number);
    return bad;
}

template <class Sink>
void run(const uint8_t *payload, const Plan &plan, const TileGeometry &g, const Sink &sink, int threads,
         const Planes &planes = {}) {
    const size_t n = g.height * g.width;
    for (size_t c = 0; c < g.channels; ++c) {
        if (plan.channels[c].mode != Mode::constant) continue;
        sink.fill(plan.channels[c].centre, n, c, c * n);
        if (!planes.symbols) continue;
        std::fill_n(planes.symbols + c * n, n, plan.channels[c].centre);
        std::fill_n(planes.errors + c * n, n, uint8_t{0});
    }

    const size_t columns = std::min(g.columns, g.width);
    size_t most = 0;
    for (const Batch &batch : plan.batches) {
        size_t bytes = 0;
        for (size_t k = 0; k < batch.count; ++k) bytes += batch.lanes[k].bytes;
        most = std::max(most, bytes);
    }
    std::vector<Scratch> scratch(std::min<size_t>(static_cast<size_t>(threads), plan.batches.size()));
    for (Scratch &s : scratch) {
        s.bits.resize(most + kRoom);
        s.symbols.resize((columns + kRoom) * kLanes);
        s.errors.resize((columns + kRoom) * kLanes);
        s.lines.resize((columns + kRoom) * kLanes);
        if (!planes.before.symbols) continue;
        s.previous.resize((columns + kRoom) * kLanes);
        s.around.resize((columns + kRoom) * kLanes);
    }
    decode_groups(plan.batches.size(), threads, [&](size_t i, size_t worker) {
        return decode_batch(payload, plan, g, plan.batches[i], sink, planes, scratch[worker]);
    });
}

void decode_floats(const uint8_t *payload, Plan plan, const TileGeometry &g, float *out, int threads,
                   const Planes &planes = {}) {
    if (g.scaling == Scaling::codebook) {
        run(payload, plan, g, CodebookSink{out, g.values, best_look_up(g.bits)}, threads, planes);
        return;
    }
    to_steps(plan.ranges, g.bits);
    const FloatSink sink{out, plan.ranges.data(), plan.ranges.size() > 2 ? size_t{2} : size_t{0}};
    run(payload, plan, g, sink, threads, planes);
}

// Coder 3's first byte: whether the frame refers to the one before.
bool refers(const uint8_t *payload, size_t size) {
    if (!size || payload[0] > 1) damaged(size ? "first byte " + std::to_string(payload[0]) : "no bytes");
    return payload[0] == 1;
}

}  // namespace

void context_decode_symbols(const uint8_t *payload, size_t size, const TileGeometry &g, uint8_t *out, int threads) {
    run(payload, make_plan(payload, size, g), g, SymbolSink{out}, threads);
}

void context_decode_floats(const uint8_t *payload, size_t size, const TileGeometry &g, float *out, int threads) {
    decode_floats(payload, make_plan(payload, size, g), g, out, threads);
}

void inter_decode_symbols(const uint8_t *payload, size_t size, const TileGeometry &g, const History &before,
                          uint8_t *symbols, uint8_t *errors, int threads) {
    const bool inter = refers(payload, size);
    run(payload + 1, make_plan(payload + 1, size - 1, g, inter), g, NoSink{}, threads,
        {symbols, errors, inter ? before : History{}});
}

void inter_decode_floats(const uint8_t *payload, size_t size, const TileGeometry &g, const History &before,
                         uint8_t *symbols, uint8_t *errors, float *out, int threads) {
    const bool inter = refers(payload, size);
    decode_floats(payload + 1, make_plan(payload + 1, size - 1, g, inter), g, out, threads,
                  {symbols, errors, inter ? before : History{}});
}

void context_lanes(const uint8_t *payload, size_t size, const TileGeometry &g, size_t at, float *ranges,
                   int32_t *channels, int32_t *lanes) {
    Plan plan = make_plan(payload, size, g);
    if (g.scaling == Scaling::codebook) {
        std::copy_n(g.values, size_t{1} << g.bits, ranges);
    } else {
        to_steps(plan.ranges, g.bits);
        std::copy(plan.ranges.begin(), plan.ranges.end(), ranges);
    }
    for (size_t c = 0; c < g.channels; ++c) {
        const auto [mode, f, slope, centre] = plan.channels[c];
        channels[c] = static_cast<int32_t>(static_cast<uint32_t>(mode) | f << 2 | slope << 8 | centre << 16);
    }
    const size_t tiles = tile_count(g);
    std::fill_n(lanes, 2 * tiles * g.channels, 0);
    for (const auto &shape : plan.lanes)
        for (const Lane &lane : shape) {
            int32_t *row = lanes + 2 * (lane.number % tiles * g.channels + lane.channel);
            row[0] = static_cast<int32_t>(at + lane.offset);
            row[1] = static_cast<int32_t>(lane.bytes);
        }
}

}  // namespace latentseg
