// Feeds damaged payloads to the native decoder. Built with -fsanitize=address,undefined by test_fuzz_native.py: payload
// and output lie in heap blocks of exactly their size, so that any step outside is fatal. Prints how many payloads were
// decoded and refused. Usage: fuzz_native ROUNDS SEED
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>

#include "../../kernels/native/entropy.h"
#include "../../kernels/native/scaling.h"

using latentseg::Geometry;
using latentseg::Scaling;

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const int rounds = std::atoi(argv[1]);
    std::mt19937 rng(static_cast<unsigned>(std::atoi(argv[2])));
    const auto below = [&](size_t n) { return static_cast<size_t>(rng() % n); };
    long decoded = 0, refused = 0;
    for (int round = 0; round < rounds; ++round) {
        Geometry g{};
        g.channels = 1 + below(6);
        g.symbols = g.channels * (1 + below(below(2) ? 40 : 700));
        g.bits = 1 + static_cast<int>(below(8));
        g.scaling = static_cast<Scaling>(below(3));
        g.lo = -1;
        g.hi = 2;
        g.table_a_channel = below(2);
        g.lane_symbols = 16 + below(100);

        std::vector<uint8_t> q(g.symbols);
        const size_t spread = 1 + below(size_t{1} << g.bits);
        for (uint8_t &s : q) s = static_cast<uint8_t>(std::min(below(spread), below(spread)));
        const size_t pairs = g.scaling == Scaling::fixed ? 0 : g.scaling == Scaling::channel ? g.channels : 1;
        const std::vector<float> scales(2 * pairs, 0.5f);
        const std::vector<uint8_t> good =
            latentseg::encode(q.data(), g.symbols, g.table_a_channel ? g.channels : 1, g.lane_symbols,
                              reinterpret_cast<const uint8_t *>(scales.data()), 4 * scales.size());

        for (int variant = 0; variant < 12; ++variant) {
            std::vector<uint8_t> bad = good;
            if (variant == 1) {
                bad.resize(below(good.size() + 1));
            } else if (variant == 2) {
                for (uint8_t &byte : bad) byte = static_cast<uint8_t>(rng());
            } else if (variant == 3) {
                bad.insert(bad.end(), 1 + below(9), static_cast<uint8_t>(rng()));
            } else if (variant > 3) {
                for (size_t flips = 1 + below(variant); flips; --flips) bad[below(bad.size())] ^= 1 << below(8);
            }
            // Another geometry than the payload was made for, now and then.
            if (variant > 9) g.lane_symbols = 16 + below(100);
            const std::unique_ptr<uint8_t[]> payload(new uint8_t[bad.size()]), symbols(new uint8_t[g.symbols]);
            const std::unique_ptr<float[]> floats(new float[g.symbols]);
            std::copy(bad.begin(), bad.end(), payload.get());
            const int threads = 1 + static_cast<int>(below(20) == 0);
            bool ok = true;
            try {
                latentseg::decode_symbols(payload.get(), bad.size(), g, symbols.get(), threads);
            } catch (const std::invalid_argument &) {
                ok = false;
            }
            bool ok_floats = true;
            try {
                latentseg::decode_floats(payload.get(), bad.size(), g, floats.get(), threads);
            } catch (const std::invalid_argument &) {
                ok_floats = false;
            }
            if (ok != ok_floats) return std::puts("symbols and floats disagree"), 1;
            if (ok)
                for (size_t i = 0; i < g.symbols; ++i)
                    if (symbols[i] >> g.bits) return std::puts("a symbol out of range"), 1;
            if (variant == 0 && (!ok || !std::equal(q.begin(), q.end(), symbols.get())))
                return std::puts("an undamaged payload did not come back"), 1;
            ++(ok ? decoded : refused);
        }
    }
    std::printf("decoded %ld, refused %ld\n", decoded, refused);
}
