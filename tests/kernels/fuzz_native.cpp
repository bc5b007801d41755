// Feeds damaged payloads to the native decoders. Built with -fsanitize=address,undefined by test_fuzz_native.py:
// payload and output lie in heap blocks of exactly their size, so that any step outside is fatal. Then several threads
// decode at once (docs/fuzzing.md: with -fsanitize=thread), and cases of fuzz_decoder.cpp are replayed. Prints for each
// coder, and for the cases, how many payloads were decoded and refused.
// Usage: fuzz_native ROUNDS SEED CASE...
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../../kernels/native/context.h"
#include "../../kernels/native/context_head.h"
#include "../../kernels/native/context_model.h"
#include "../../kernels/native/entropy.h"
#include "../../kernels/native/scaling.h"
#include "../../kernels/native/workers.h"

using latentseg::Geometry;
using latentseg::Scaling;
using latentseg::TileGeometry;
using Bytes = std::vector<uint8_t>;

// fuzz_decoder.cpp
extern "C" int LLVMFuzzerInitialize(int *argc, char ***argv);
bool decodes(const uint8_t *data, size_t size);

namespace {

std::mt19937 rng;

size_t below(size_t n) { return static_cast<size_t>(rng() % n); }

[[noreturn]] void fail(const char *what) {
    std::puts(what);
    std::exit(1);
}

const std::vector<float> values = [] {
    std::vector<float> centres(256, 200);
    for (size_t i = 0; i < 200; ++i) centres[i] = static_cast<float>(i);
    return centres;
}();

struct Tally {
    long decoded = 0, refused = 0;
};

Bytes random_symbols(size_t n, int bits) {
    Bytes q(n);
    const size_t spread = 1 + below(size_t{1} << bits);
    for (uint8_t &s : q) s = static_cast<uint8_t>(std::min(below(spread), below(spread)));
    // Jumps, now and then: the context coder's escapes.
    if (below(2))
        for (size_t i = below(60); i < n; i += 1 + below(60)) q[i] = static_cast<uint8_t>(below(size_t{1} << bits));
    return q;
}

size_t scale_floats(Scaling scaling, size_t channels) {
    return 2 * (scaling == Scaling::tensor ? 1 : scaling == Scaling::channel ? channels : 0);
}

// Variant 0 is the payload as it is.
Bytes damage(const Bytes &good, int variant) {
    Bytes bad = good;
    if (variant == 1) {
        bad.resize(below(good.size() + 1));
    } else if (variant == 2) {
        for (uint8_t &byte : bad) byte = static_cast<uint8_t>(rng());
    } else if (variant == 3) {
        bad.insert(bad.end(), 1 + below(9), static_cast<uint8_t>(rng()));
    } else if (variant > 3) {
        for (size_t flips = 1 + below(static_cast<size_t>(variant)); flips; --flips)
            bad[below(bad.size())] ^= static_cast<uint8_t>(1 << below(8));
    }
    return bad;
}

template <class Function>
bool accepts(const Function &decode) {
    try {
        decode();
    } catch (const std::invalid_argument &) {
        return false;
    }
    return true;
}

// G: Geometry or TileGeometry. `q` is what the payload must give, or null where it is damaged.
template <class G, class Symbols, class Floats>
void feed(const Bytes &content, const G &g, size_t count, const Bytes *q, Tally &tally, Symbols to_symbols,
          Floats to_floats) {
    const std::unique_ptr<uint8_t[]> payload(new uint8_t[content.size()]), symbols(new uint8_t[count]);
    const std::unique_ptr<float[]> floats(new float[count]);
    std::copy(content.begin(), content.end(), payload.get());
    const int threads = 1 + static_cast<int>(below(20) == 0);
    const bool ok = accepts([&] { to_symbols(payload.get(), content.size(), g, symbols.get(), threads); });
    if (ok != accepts([&] { to_floats(payload.get(), content.size(), g, floats.get(), threads); }))
        fail("symbols and floats disagree");
    if (ok && std::any_of(symbols.get(), symbols.get() + count, [&](uint8_t s) { return s >> g.bits; }))
        fail("a symbol out of range");
    if (q && (!ok || !std::equal(q->begin(), q->end(), symbols.get()))) fail("an undamaged payload did not come back");
    ++(ok ? tally.decoded : tally.refused);
}

void huffman_round(Tally &tally) {
    Geometry g{};
    g.channels = 1 + below(6);
    g.symbols = g.channels * (1 + below(below(2) ? 40 : 700));
    g.bits = 1 + static_cast<int>(below(8));
    g.scaling = static_cast<Scaling>(below(4));
    g.values = values.data();
    g.lo = -1;
    g.hi = 2;
    g.table_a_channel = below(2);
    g.lane_symbols = 16 + below(100);

    const Bytes q = random_symbols(g.symbols, g.bits);
    const std::vector<float> scales(scale_floats(g.scaling, g.channels), 0.5f);
    const Bytes good = latentseg::encode(q.data(), g.symbols, g.table_a_channel ? g.channels : 1, g.lane_symbols,
                                         reinterpret_cast<const uint8_t *>(scales.data()), 4 * scales.size());
    for (int variant = 0; variant < 12; ++variant) {
        // Another geometry than the payload was made for, now and then.
        if (variant > 9) g.lane_symbols = 16 + below(100);
        feed(damage(good, variant), g, g.symbols, variant ? nullptr : &q, tally, latentseg::decode_symbols,
             latentseg::decode_floats);
    }
}

// A good payload with another head: parameters that pass, and the lanes' lengths as they were. Half of the time the last
// lanes' bytes are others.
Bytes forge(const Bytes &good, size_t scale_bytes, const TileGeometry &g) {
    const size_t tiles = latentseg::tile_count(g);
    std::vector<float> ranges(std::max<size_t>(2 * g.channels, 256));
    std::vector<int32_t> what(g.channels), where(2 * tiles * g.channels);
    latentseg::context_lanes(good.data(), good.size(), g, 0, ranges.data(), what.data(), where.data());
    std::vector<latentseg::Channel> channels;
    std::vector<uint32_t> sizes;
    size_t lane_bytes = 0;
    for (size_t c = 0; c < g.channels; ++c) {
        const bool constant = (what[c] & 3) == 0;  // has no lanes
        channels.push_back({static_cast<latentseg::Mode>(constant ? 0 : 1 + below(2)),
                            static_cast<uint8_t>(below(latentseg::kSteps)), static_cast<uint8_t>(below(latentseg::kSteps)),
                            static_cast<uint8_t>(below(size_t{1} << g.bits))});
        for (size_t tile = 0; tile < tiles && !constant; ++tile) {
            sizes.push_back(static_cast<uint32_t>(where[2 * (tile * g.channels + c) + 1]));
            lane_bytes += sizes.back();
        }
    }
    Bytes bad(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(scale_bytes));
    latentseg::write_head(channels, sizes, tiles, g.bits, bad);
    bad.insert(bad.end(), good.end() - static_cast<std::ptrdiff_t>(lane_bytes), good.end());
    if (below(2))
        for (size_t i = std::min(lane_bytes, 1 + below(40)); i; --i) bad[bad.size() - i] = static_cast<uint8_t>(rng());
    return bad;
}

void context_round(Tally &tally) {
    TileGeometry g{};
    const bool small = below(2);
    g.channels = 1 + below(6);
    g.height = 1 + below(small ? 8 : 40);
    g.width = 1 + below(small ? 8 : 40);
    g.bits = 1 + static_cast<int>(below(8));
    g.scaling = static_cast<Scaling>(below(4));
    g.values = values.data();
    g.lo = -1;
    g.hi = 2;
    const auto tile = [&] {
        g.rows = 1 + below(below(8) ? 20 : 65535);
        g.columns = 1 + below(below(8) ? 20 : 65535);
    };
    tile();

    const size_t count = g.channels * g.height * g.width;
    Bytes q = random_symbols(count, g.bits);
    // Slopes, which are predicted, and a constant channel.
    if (below(2))
        for (size_t i = 0; i < count; ++i) q[i] = static_cast<uint8_t>((q[i] / 8 + i % g.width * 3) % (1u << g.bits));
    if (below(3) == 0) std::fill_n(q.begin(), g.height * g.width, q[0]);
    const std::vector<float> scales(scale_floats(g.scaling, g.channels), 0.5f);
    const size_t scale_bytes = 4 * scales.size();
    const TileGeometry own = g;
    const Bytes good =
        latentseg::context_encode(q.data(), g, reinterpret_cast<const uint8_t *>(scales.data()), scale_bytes);
    for (int variant = 0; variant < 16; ++variant) {
        const Bytes bad = variant < 12 ? damage(good, variant) : forge(good, scale_bytes, own);
        if (variant == 10 || variant == 11) tile();
        feed(bad, variant < 12 ? g : own, count, variant ? nullptr : &q, tally, latentseg::context_decode_symbols,
             latentseg::context_decode_floats);
    }
}

// Three frames that are alike, the last one damaged, and in half of the rounds the planes that it refers to.
void inter_round(Tally &tally) {
    TileGeometry g{};
    g.channels = 1 + below(6);
    g.height = 1 + below(30);
    g.width = 1 + below(40);
    g.bits = 1 + static_cast<int>(below(8));
    g.scaling = static_cast<Scaling>(below(4));
    g.values = values.data();
    g.lo = -1;
    g.hi = 2;
    g.rows = 1 + below(20);
    g.columns = 1 + below(20);
    const size_t count = g.channels * g.height * g.width;
    const std::vector<float> scales(scale_floats(g.scaling, g.channels), 0.5f);
    const auto *scale_data = reinterpret_cast<const uint8_t *>(scales.data());
    Bytes q = random_symbols(count, g.bits), symbols = q, errors(count), left(count), payload;
    for (int frame = 0; frame < 3; ++frame) {
        symbols = q;
        errors = left;
        for (size_t changes = below(1 + count / 4); changes; --changes)
            q[below(count)] = static_cast<uint8_t>(below(size_t{1} << g.bits));
        const latentseg::History before{symbols.data(), errors.data()};
        payload = latentseg::inter_encode(q.data(), g, scale_data, 4 * scales.size(), frame ? &before : nullptr,
                                          left.data());
    }
    for (int variant = 0; variant < 16; ++variant) {
        Bytes old_symbols = symbols, old_errors = errors, kept(count), kept_errors(count), other(count);
        if (variant > 9)
            for (Bytes *plane : {&old_symbols, &old_errors})
                for (uint8_t &byte : *plane) byte = static_cast<uint8_t>(rng());
        const latentseg::History before{old_symbols.data(), old_errors.data()};
        feed(damage(payload, variant % 12), g, count, variant ? nullptr : &q, tally,
             [&](const uint8_t *p, size_t n, const TileGeometry &t, uint8_t *out, int threads) {
                 latentseg::inter_decode_symbols(p, n, t, before, out, kept_errors.data(), threads);
             },
             [&](const uint8_t *p, size_t n, const TileGeometry &t, float *out, int threads) {
                 latentseg::inter_decode_floats(p, n, t, before, kept.data(), other.data(), out, threads);
             });
        if (variant == 0 && (kept != q || kept_errors != left || other != left)) fail("another frame is left behind");
    }
}

// Several callers at once, each with more threads than lanes are worth: payloads of both coders, good and bad. Then the
// helpers are ended, and callers work alone.
void threads_round() {
    constexpr int kCallers = 4, kTimes = 60;
    const TileGeometry tiles{5, 41, 67, 6, Scaling::fixed, -1, 2, 4, 6};
    const Geometry lanes{5 * 41 * 67, 5, 6, Scaling::fixed, -1, 2, true, 24};
    const Bytes q = random_symbols(lanes.symbols, lanes.bits);
    const Bytes context = latentseg::context_encode(q.data(), tiles, nullptr, 0);
    const Bytes huffman = latentseg::encode(q.data(), lanes.symbols, lanes.channels, lanes.lane_symbols, nullptr, 0);
    Bytes damaged = context;
    damaged.back() ^= 0x55;
    const auto call = [&](int caller) {
        Bytes symbols(q.size());
        for (int i = 0; i < kTimes; ++i) {
            const int threads = 1 + (caller + i) % 5;
            latentseg::context_decode_symbols(context.data(), context.size(), tiles, symbols.data(), threads);
            if (symbols != q) fail("threads give other symbols");
            latentseg::decode_symbols(huffman.data(), huffman.size(), lanes, symbols.data(), threads);
            if (symbols != q) fail("threads give other symbols");
            if (accepts([&] {
                    latentseg::context_decode_symbols(damaged.data(), damaged.size(), tiles, symbols.data(), threads);
                }))
                fail("threads miss damage");
        }
    };
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i) callers.emplace_back(call, i);
    for (std::thread &caller : callers) caller.join();
    latentseg::Workers::stop();
    call(kCallers);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const int rounds = std::atoi(argv[1]);
    rng.seed(static_cast<unsigned>(std::atoi(argv[2])));
    LLVMFuzzerInitialize(&argc, &argv);
    Tally huffman, context, inter;
    for (int round = 0; round < rounds; ++round) huffman_round(huffman);
    for (int round = 0; round < rounds; ++round) context_round(context);
    for (int round = 0; round < rounds; ++round) inter_round(inter);
    threads_round();
    std::printf("huffman decoded %ld, refused %ld\n", huffman.decoded, huffman.refused);
    std::printf("context decoded %ld, refused %ld\n", context.decoded, context.refused);
    std::printf("inter decoded %ld, refused %ld\n", inter.decoded, inter.refused);
    Tally corpus;
    for (int i = 3; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        if (!file) fail(argv[i]);
        const Bytes content{std::istreambuf_iterator<char>(file), {}};
        ++(decodes(content.data(), content.size()) ? corpus.decoded : corpus.refused);
    }
    std::printf("corpus decoded %ld, refused %ld\n", corpus.decoded, corpus.refused);
}
