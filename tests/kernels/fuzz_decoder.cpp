// libFuzzer's entry to the native decoders (docs/fuzzing.md). A case is eight bytes that choose the stream's header,
// then a payload of any content; test_fuzz_native.py reads the same eight bytes. Under coder 3 the frame before lies in
// between: its symbols and errors, as many as there are. Whatever the payload is, it must be refused or decoded: alike to
// symbols and to floats, within its buffers, with little memory.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../../kernels/native/context.h"
#include "../../kernels/native/context_head.h"
#include "../../kernels/native/context_model.h"
#include "../../kernels/native/entropy.h"
#include "../../kernels/native/scaling.h"

using latentseg::Geometry;
using latentseg::Scaling;
using latentseg::TileGeometry;

namespace latentseg {
extern bool all_row_loops;  // fuzz_rows.cpp
}

// Of the sanitizers' run-time libraries; GCC lacks the header.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void *, size_t),
                                                         void (*free_hook)(const volatile void *));

namespace {

constexpr size_t kHead = 8;
constexpr float kLo = -1, kHi = 2;  // of fixed scaling

// A codebook of so many bits: the last symbols have no centres of their own, where the bits allow it.
struct Codebook {
    float values[256];
    explicit Codebook(int bits) {
        const int count = bits == 1 ? 2 : 3 << bits >> 2;
        for (int s = 0; s < 256; ++s) {
            const auto i = static_cast<float>(std::min(s, count - 1));
            values[s] = i * i - 3 * kHi;
        }
    }
};

std::atomic<size_t> allocated;  // bytes, since it was last set to 0

void require(bool good, const char *what) {
    if (good) return;
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

// What one decoding may allocate: work space by the frame (a decoding table and a value table a channel among it), and
// a few times the payload.
size_t most_memory(size_t channels, size_t symbols, size_t size) {
    return (size_t{1} << 14) + (size_t{10} << 10) * channels + 100 * symbols + 100 * size;
}

// Whether decode() takes the payload.
template <class Function>
bool accepts(size_t most, const Function &decode) {
    allocated = 0;
    bool good = true;
    try {
        decode();
    } catch (const std::invalid_argument &) {
        good = false;
    }
    require(allocated <= most, "more memory than the payload and the frame account for");
    return good;
}

// G: Geometry or TileGeometry.
template <class G>
void check_floats(const uint8_t *payload, const G &g, size_t count, const uint8_t *symbols, const float *floats) {
    const size_t ranges = g.scaling == Scaling::channel ? g.channels : 1;
    for (size_t i = 0; i < count; ++i) {
        if (g.scaling == Scaling::codebook) {
            require(std::memcmp(g.values + symbols[i], floats + i, 4) == 0, "a float that is not its symbol's centre");
            continue;
        }
        float lo = kLo, hi = kHi;
        if (g.scaling != Scaling::fixed) {
            const size_t range = i / (count / ranges);
            std::memcpy(&lo, payload + 4 * range, 4);
            std::memcpy(&hi, payload + 4 * (ranges + range), 4);
        }
        const float step = (hi - lo) / static_cast<float>((1 << g.bits) - 1);
        const float value = static_cast<float>(symbols[i]) * step + lo;
        require(std::memcmp(&value, floats + i, 4) == 0, "a float that is not its symbol's value");
    }
}

enum class What { both, symbols, floats };

// Symbols take each row through all loops, floats through the one that users get.
template <class G, class Symbols, class Floats>
bool feed(const uint8_t *payload, size_t size, const G &g, size_t count, What what, Symbols to_symbols,
          Floats to_floats, size_t scales_at = 0) {
    const std::unique_ptr<uint8_t[]> symbols(new uint8_t[count]);
    const std::unique_ptr<float[]> floats(new float[count]);
    const size_t most = most_memory(g.channels, count, size);
    bool ok = false;
    if (what != What::floats) {
        latentseg::all_row_loops = true;
        ok = accepts(most, [&] { to_symbols(payload, size, g, symbols.get(), 1); });
        require(!ok || std::none_of(symbols.get(), symbols.get() + count, [&](uint8_t s) { return s >> g.bits; }),
                "a symbol out of range");
    }
    if (what != What::symbols) {
        latentseg::all_row_loops = false;
        const bool before = ok;
        ok = accepts(most, [&] { to_floats(payload, size, g, floats.get(), 1); });
        require(what == What::floats || ok == before, "symbols and floats disagree");
    }
    if (ok && what == What::both) check_floats(payload + scales_at, g, count, symbols.get(), floats.get());
    return ok;
}

// Coder 3: what symbols and floats leave to the next frame is the same, too.
bool feed_inter(const uint8_t *payload, size_t size, const TileGeometry &g, size_t count, What what,
                const latentseg::History &before) {
    const std::unique_ptr<uint8_t[]> errors(new uint8_t[count]), planes(new uint8_t[count]), again(new uint8_t[count]);
    const auto to_symbols = [&](const uint8_t *p, size_t n, const TileGeometry &t, uint8_t *out, int threads) {
        latentseg::inter_decode_symbols(p, n, t, before, out, errors.get(), threads);
    };
    const auto to_floats = [&](const uint8_t *p, size_t n, const TileGeometry &t, float *out, int threads) {
        latentseg::inter_decode_floats(p, n, t, before, planes.get(), again.get(), out, threads);
    };
    // check_floats finds the scales behind the first byte.
    const bool ok = feed(payload, size, g, count, what, to_symbols, to_floats, size_t{1});
    if (ok && what == What::both) {
        require(std::equal(errors.get(), errors.get() + count, again.get()), "symbols and floats leave other errors");
        require(std::none_of(errors.get(), errors.get() + count, [](uint8_t e) { return e > 128; }), "an error over 128");
    }
    return ok;
}

// What the GPU decoder starts from: it must refuse what is refused before the lanes' bits, and point into the payload.
void check_lanes(const uint8_t *payload, size_t size, const TileGeometry &g, bool decodes) {
    const bool codebook = g.scaling == Scaling::codebook;
    const size_t ranges = g.scaling == Scaling::channel ? g.channels : 1, lanes = tile_count(g) * g.channels;
    const size_t floats = codebook ? size_t{1} << g.bits : 2 * ranges;
    const std::unique_ptr<float[]> steps(new float[floats]);
    const std::unique_ptr<int32_t[]> channels(new int32_t[g.channels]), where(new int32_t[2 * lanes]);
    const bool ok = accepts(most_memory(g.channels, g.channels * g.height * g.width, size), [&] {
        latentseg::context_lanes(payload, size, g, 0, steps.get(), channels.get(), where.get());
    });
    require(ok || !decodes, "lanes are refused, but decode");
    require(!ok || !codebook || std::equal(steps.get(), steps.get() + floats, g.values), "not the codebook's values");
    for (size_t i = 0; ok && i < lanes; ++i) {
        const int64_t first = where[2 * i], bytes = where[2 * i + 1];
        require(first >= 0 && bytes >= 0 && first + bytes <= static_cast<int64_t>(size), "a lane outside the payload");
    }
}

// A few bytes that promise 2^26 symbols in lanes of 16 are refused before anything is allocated for the lanes.
void check_big_frames() {
    constexpr size_t kChannels = 64, kSide = 1024, kCount = kChannels * kSide * kSide;
    std::vector<uint8_t> channels, tables;
    // Centred, the narrowest law.
    latentseg::write_head(std::vector<latentseg::Channel>(kChannels, {latentseg::Mode::centred, 0, 0, 0}), {}, 0, 8,
                          channels);
    for (size_t c = 0; c < kChannels; ++c)
        tables.insert(tables.end(), {0, 1, 1 << 4 | 1});  // symbols 0 and 1, one bit each
    const TileGeometry tiles{kChannels, kSide, kSide, 8, Scaling::fixed, kLo, kHi, 4, 4};
    const Geometry lanes{kCount, kChannels, 8, Scaling::fixed, kLo, kHi, true, 16};
    const size_t most = most_memory(kChannels, 0, 1000);
    for (auto *content : {&channels, &tables}) {
        content->resize(1000, 2);
        const bool context = content == &channels;
        const bool taken = accepts(most, [&] {
            context ? latentseg::context_decode_symbols(content->data(), content->size(), tiles, nullptr, 1)
                    : latentseg::decode_symbols(content->data(), content->size(), lanes, nullptr, 1);
        });
        require(!taken, "a few bytes make a large frame");
    }
}

}  // namespace

// libFuzzer calls this once, before anything else.
extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    require(__sanitizer_install_malloc_and_free_hooks(
                [](const volatile void *, size_t size) { allocated += size; }, [](const volatile void *) {}) > 0,
            "no room for the memory hooks");
    // Builds the tables. The number: docs/format.md, section "Payload of coder 2".
    require(latentseg::context_tables_crc() == 0x28D07288, "the tables are not those of the format");
    check_big_frames();
    return 0;
}

// Whether the case's payload is decoded, not refused.
bool decodes(const uint8_t *data, size_t size) {
    if (size < kHead) return false;
    const uint8_t lane_rows = data[6], lane_columns = data[7];
    // Huffman with one table, Huffman with a table a channel, context; context between frames.
    const int coder = data[0] < 192 ? data[0] % 3 : 3;
    auto scaling = static_cast<Scaling>(data[1] % 3);
    const auto what = static_cast<What>(data[1] / 3 % 3);
    // Payloads of both are alike.
    if (scaling == Scaling::fixed && data[1] / 9 % 2) scaling = Scaling::codebook;
    const int bits = 1 + data[2] % 8;
    const Codebook codebook(bits);
    const size_t channels = 1 + data[3] % 8, height = 1 + data[4] % 4, width = 1 + data[5] % 18;
    const size_t count = channels * height * width;
    size -= kHead;
    data += kHead;
    const std::unique_ptr<uint8_t[]> old_symbols(new uint8_t[count]()), old_errors(new uint8_t[count]());
    if (coder == 3) {
        for (auto *plane : {&old_symbols, &old_errors}) {
            const size_t here = std::min(size, count);
            std::copy_n(data, here, plane->get());
            data += here;
            size -= here;
        }
    }
    const std::unique_ptr<uint8_t[]> payload(new uint8_t[size]);
    std::copy_n(data, size, payload.get());
    if (coder < 2) {
        const Geometry g{count, channels, bits, scaling, kLo, kHi, coder == 1, size_t{16} + lane_rows,
                         codebook.values};
        return feed(payload.get(), size, g, count, what, latentseg::decode_symbols, latentseg::decode_floats);
    }
    // Tiles that a header may have: of 16 to 2^24 symbols.
    const size_t rows = lane_rows < 240 ? 1 + lane_rows % 12 : 65535;
    const size_t columns = lane_columns < 240 ? std::max<size_t>((15 + rows) / rows, 1 + lane_columns % 24)
                                              : std::min<size_t>(65535, (size_t{1} << 24) / rows);
    const TileGeometry g{channels, height, width, bits, scaling, kLo, kHi, rows, columns, codebook.values};
    if (coder == 3) return feed_inter(payload.get(), size, g, count, what, {old_symbols.get(), old_errors.get()});
    const bool ok = feed(payload.get(), size, g, count, what, latentseg::context_decode_symbols,
                         latentseg::context_decode_floats);
    if (what == What::both) check_lanes(payload.get(), size, g, ok);
    return ok;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decodes(data, size);
    return 0;
}
