// Python bindings. Each function checks what could send a loop out of bounds, then works without the GIL. Errors in a
// payload leave as ValueError; kernels/entropy.py makes InputError of them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "context.h"
#include "context_model.h"
#include "entropy.h"
#include "scaling.h"
#include "workers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes1 = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes1 = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats1 = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints1 = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstFloats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstBytes3 = nb::ndarray<const uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Bytes2 = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstBytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstFloats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool good, const char *what) {
    if (!good) throw nb::type_error(what);
}

bool quantize(const ConstFloats2 &x, int levels, const ConstFloats1 &lo, const ConstFloats1 &hi, const Bytes2 &q) {
    const size_t rows = x.shape(0), n = x.shape(1);
    require(lo.size() == rows && hi.size() == rows, "quantize: one lo and hi a row");
    require(q.shape(0) == rows && q.shape(1) == n, "quantize: q has the shape of x");
    require(levels >= 1 && levels <= 255, "quantize: levels in 1..255");
    const nb::gil_scoped_release release;
    bool finite = true;
    for (size_t r = 0; r < rows; ++r)
        finite &= latentseg::quantize(x.data() + r * n, n, levels, lo.data()[r], hi.data()[r], q.data() + r * n);
    return finite;
}

void dequantize(const ConstBytes2 &q, int levels, const ConstFloats1 &lo, const ConstFloats1 &hi, const Floats2 &out) {
    const size_t rows = q.shape(0), n = q.shape(1);
    require(lo.size() == rows && hi.size() == rows, "dequantize: one lo and hi a row");
    require(out.shape(0) == rows && out.shape(1) == n, "dequantize: out has the shape of q");
    require(levels >= 1 && levels <= 255, "dequantize: levels in 1..255");
    const nb::gil_scoped_release release;
    for (size_t r = 0; r < rows; ++r) {
        float values[256];
        latentseg::value_table(levels, lo.data()[r], hi.data()[r], values);
        for (size_t i = 0; i < n; ++i) out.data()[r * n + i] = values[q.data()[r * n + i]];
    }
}

bool quantize_codebook(const ConstFloats1 &x, const ConstFloats1 &midpoints, const Bytes1 &q) {
    require(q.size() == x.size(), "quantize_codebook: q has the size of x");
    require(midpoints.size() >= 1 && midpoints.size() <= 255, "quantize_codebook: 1..255 midpoints");
    const nb::gil_scoped_release release;
    return latentseg::quantize_codebook(x.data(), x.size(), midpoints.data(), midpoints.size(), q.data());
}

// A codebook's value of each symbol, the last one's repeated.
using Values = std::array<float, 256>;

Values codebook_values(const void *centres, size_t count) {
    Values values;
    std::memcpy(values.data(), centres, sizeof(float) * count);
    std::fill(values.begin() + static_cast<std::ptrdiff_t>(count), values.end(), values[count - 1]);
    return values;
}

void dequantize_codebook(const ConstBytes1 &q, const ConstFloats1 &centres, const Floats1 &out) {
    require(out.size() == q.size(), "dequantize_codebook: out has the size of q");
    require(centres.size() >= 1 && centres.size() <= 256, "dequantize_codebook: 1..256 centres");
    const nb::gil_scoped_release release;
    const Values values = codebook_values(centres.data(), centres.size());
    latentseg::best_look_up(std::bit_width(centres.size() - 1))(q.data(), q.size(), values.data(), out.data());
}

// centres: float32 as they lie in memory; none unless the scaling is a codebook.
Values scaling_values(int scaling, int bits, const nb::bytes &centres) {
    require(bits >= 1 && bits <= 8 && scaling >= 0 && scaling <= 3, "decode: bits in 1..8, scaling in 0..3");
    const size_t count = centres.size() / sizeof(float);
    const bool codebook = static_cast<latentseg::Scaling>(scaling) == latentseg::Scaling::codebook;
    require(centres.size() % sizeof(float) == 0 && count <= size_t{1} << bits && codebook == (count > 0),
            "decode: 1..2^bits centres with a codebook, none without");
    if (!codebook) return {};
    return codebook_values(centres.c_str(), count);
}

nb::bytes encode(const ConstBytes1 &q, size_t segments, size_t lane_symbols, const nb::bytes &scales) {
    require(q.size() > 0 && segments > 0 && q.size() % segments == 0, "encode: segments of equal size, not empty");
    require(lane_symbols > 0, "encode: lane_symbols above 0");
    std::vector<uint8_t> payload;
    {
        const auto *scale_data = reinterpret_cast<const uint8_t *>(scales.c_str());
        const size_t scale_bytes = scales.size();
        const nb::gil_scoped_release release;
        payload = latentseg::encode(q.data(), q.size(), segments, lane_symbols, scale_data, scale_bytes);
    }
    return nb::bytes(reinterpret_cast<const char *>(payload.data()), payload.size());
}

template <class Out, class Function>
void decode(Function function, const nb::bytes &payload, size_t channels, int bits, int scaling, float lo, float hi,
            const nb::bytes &centres, bool table_a_channel, size_t lane_symbols, const Out &out, int threads) {
    require(out.size() > 0 && channels > 0 && out.size() % channels == 0, "decode: channels of equal size, not empty");
    require(lane_symbols > 0 && threads > 0, "decode: lane_symbols and threads above 0");
    const Values values = scaling_values(scaling, bits, centres);
    const latentseg::Geometry geometry{out.size(), channels, bits, static_cast<latentseg::Scaling>(scaling),
                                       lo, hi, table_a_channel, lane_symbols, values.data()};
    const auto *data = reinterpret_cast<const uint8_t *>(payload.c_str());
    const size_t size = payload.size();
    const nb::gil_scoped_release release;
    function(data, size, geometry, out.data(), threads);
}

void require_tiles(const latentseg::TileGeometry &g) {
    constexpr size_t kMost = size_t{1} << 26;  // of a frame in docs/format.md
    require(g.channels > 0 && g.height > 0 && g.width > 0, "context: a shape without zeros");
    require(g.channels <= kMost && g.height <= kMost && g.width <= kMost && g.height * g.width <= kMost &&
                g.channels * g.height * g.width <= kMost,
            "context: at most 2^26 symbols");
    require(g.bits >= 1 && g.bits <= 8, "context: bits in 1..8");
    require(g.rows > 0 && g.rows < 65536 && g.columns > 0 && g.columns < 65536, "context: tile sides in 1..65535");
}

nb::bytes context_encode(const ConstBytes3 &q, int bits, size_t rows, size_t columns, const nb::bytes &scales) {
    const latentseg::TileGeometry geometry{
        q.shape(0), q.shape(1), q.shape(2), bits, latentseg::Scaling::fixed, 0, 0, rows, columns};
    require_tiles(geometry);
    std::vector<uint8_t> payload;
    {
        const auto *scale_data = reinterpret_cast<const uint8_t *>(scales.c_str());
        const size_t scale_bytes = scales.size();
        const nb::gil_scoped_release release;
        payload = latentseg::context_encode(q.data(), geometry, scale_data, scale_bytes);
    }
    return nb::bytes(reinterpret_cast<const char *>(payload.data()), payload.size());
}

template <class Out, auto function>
void context_decode(const nb::bytes &payload, size_t channels, size_t height, size_t width, int bits, int scaling,
                    float lo, float hi, const nb::bytes &centres, size_t rows, size_t columns, const Out &out,
                    int threads) {
    require(threads > 0, "context: threads above 0");
    const Values values = scaling_values(scaling, bits, centres);
    const latentseg::TileGeometry geometry{channels, height, width, bits, static_cast<latentseg::Scaling>(scaling),
                                           lo, hi, rows, columns, values.data()};
    require_tiles(geometry);
    require(out.size() == channels * height * width, "context: out has the size of the shape");
    const auto *data = reinterpret_cast<const uint8_t *>(payload.c_str());
    const size_t size = payload.size();
    const nb::gil_scoped_release release;
    function(data, size, geometry, out.data(), threads);
}

nb::bytes inter_encode(const ConstBytes3 &q, int bits, size_t rows, size_t columns, const nb::bytes &scales,
                       bool refers, const ConstBytes1 &symbols, const ConstBytes1 &errors, const Bytes1 &left) {
    const latentseg::TileGeometry geometry{
        q.shape(0), q.shape(1), q.shape(2), bits, latentseg::Scaling::fixed, 0, 0, rows, columns};
    require_tiles(geometry);
    require(symbols.size() == q.size() && errors.size() == q.size() && left.size() == q.size(),
            "inter: planes of the frame's size");
    std::vector<uint8_t> payload;
    {
        const auto *scale_data = reinterpret_cast<const uint8_t *>(scales.c_str());
        const size_t scale_bytes = scales.size();
        const latentseg::History before{symbols.data(), errors.data()};
        const nb::gil_scoped_release release;
        payload = latentseg::inter_encode(q.data(), geometry, scale_data, scale_bytes, refers ? &before : nullptr,
                                          left.data());
    }
    return nb::bytes(reinterpret_cast<const char *>(payload.data()), payload.size());
}

// out: of floats; null where symbols are enough.
void inter_decode(const nb::bytes &payload, size_t channels, size_t height, size_t width, int bits, int scaling,
                  float lo, float hi, const nb::bytes &centres, size_t rows, size_t columns,
                  const ConstBytes1 &old_symbols, const ConstBytes1 &old_errors, const Bytes1 &symbols,
                  const Bytes1 &errors, const Floats1 *out, int threads) {
    require(threads > 0, "inter: threads above 0");
    const Values values = scaling_values(scaling, bits, centres);
    const latentseg::TileGeometry geometry{channels, height, width, bits, static_cast<latentseg::Scaling>(scaling),
                                           lo, hi, rows, columns, values.data()};
    require_tiles(geometry);
    const size_t count = channels * height * width;
    require(old_symbols.size() == count && old_errors.size() == count && symbols.size() == count &&
                errors.size() == count && (!out || out->size() == count),
            "inter: planes and out have the size of the shape");
    const auto *data = reinterpret_cast<const uint8_t *>(payload.c_str());
    const size_t size = payload.size();
    const latentseg::History before{old_symbols.data(), old_errors.data()};
    const nb::gil_scoped_release release;
    if (out)
        latentseg::inter_decode_floats(data, size, geometry, before, symbols.data(), errors.data(), out->data(),
                                       threads);
    else
        latentseg::inter_decode_symbols(data, size, geometry, before, symbols.data(), errors.data(), threads);
}

void context_lanes(const nb::bytes &payload, size_t channels, size_t height, size_t width, int bits, int scaling,
                   float lo, float hi, const nb::bytes &centres, size_t rows, size_t columns, size_t at,
                   const Floats1 &ranges, const Ints1 &what, const Ints1 &lanes) {
    const Values values = scaling_values(scaling, bits, centres);
    const auto mode = static_cast<latentseg::Scaling>(scaling);
    const latentseg::TileGeometry geometry{channels, height, width, bits, mode, lo, hi, rows, columns, values.data()};
    require_tiles(geometry);
    const size_t range_floats = mode == latentseg::Scaling::codebook  ? size_t{1} << bits
                                : mode == latentseg::Scaling::channel ? 2 * channels
                                                                      : 2;
    constexpr size_t kMost = (size_t{1} << 31) - 1;  // lane positions are 32-bit numbers
    require(payload.size() <= kMost && at <= kMost - payload.size(), "context: payloads of at most 2^31 - 1 bytes");
    require(ranges.size() == range_floats && what.size() == channels &&
                lanes.size() == 2 * channels * latentseg::tile_count(geometry),
            "context: outputs of the plan's size");
    const auto *data = reinterpret_cast<const uint8_t *>(payload.c_str());
    const size_t size = payload.size();
    const nb::gil_scoped_release release;
    latentseg::context_lanes(data, size, geometry, at, ranges.data(), what.data(), lanes.data());
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of latentseg; use them through latentseg.kernels.";
    m.def("quantize", &quantize, "x"_a, "levels"_a, "lo"_a, "hi"_a, "q"_a.noconvert());
    m.def("dequantize", &dequantize, "q"_a, "levels"_a, "lo"_a, "hi"_a, "out"_a.noconvert());
    m.def("quantize_codebook", &quantize_codebook, "x"_a, "midpoints"_a, "q"_a.noconvert());
    m.def("dequantize_codebook", &dequantize_codebook, "q"_a, "centres"_a, "out"_a.noconvert());
    m.def("encode", &encode, "q"_a, "segments"_a, "lane_symbols"_a, "scales"_a);
    m.def(
        "decode_symbols",
        [](const nb::bytes &payload, size_t channels, int bits, int scaling, float lo, float hi,
           const nb::bytes &centres, bool table_a_channel, size_t lane_symbols, const Bytes1 &out, int threads) {
            decode(latentseg::decode_symbols, payload, channels, bits, scaling, lo, hi, centres, table_a_channel,
                   lane_symbols, out, threads);
        },
        "payload"_a, "channels"_a, "bits"_a, "scaling"_a, "lo"_a, "hi"_a, "centres"_a, "table_a_channel"_a,
        "lane_symbols"_a, "out"_a.noconvert(), "threads"_a);
    m.def(
        "decode_floats",
        [](const nb::bytes &payload, size_t channels, int bits, int scaling, float lo, float hi,
           const nb::bytes &centres, bool table_a_channel, size_t lane_symbols, const Floats1 &out, int threads) {
            decode(latentseg::decode_floats, payload, channels, bits, scaling, lo, hi, centres, table_a_channel,
                   lane_symbols, out, threads);
        },
        "payload"_a, "channels"_a, "bits"_a, "scaling"_a, "lo"_a, "hi"_a, "centres"_a, "table_a_channel"_a,
        "lane_symbols"_a, "out"_a.noconvert(), "threads"_a);
    m.def("context_encode", &context_encode, "q"_a, "bits"_a, "rows"_a, "columns"_a, "scales"_a);
    m.def("context_decode_symbols", &context_decode<Bytes1, latentseg::context_decode_symbols>, "payload"_a,
          "channels"_a, "height"_a, "width"_a, "bits"_a, "scaling"_a, "lo"_a, "hi"_a, "centres"_a, "rows"_a,
          "columns"_a, "out"_a.noconvert(), "threads"_a);
    m.def("context_decode_floats", &context_decode<Floats1, latentseg::context_decode_floats>, "payload"_a,
          "channels"_a, "height"_a, "width"_a, "bits"_a, "scaling"_a, "lo"_a, "hi"_a, "centres"_a, "rows"_a,
          "columns"_a, "out"_a.noconvert(), "threads"_a);
    m.def("inter_encode", &inter_encode, "q"_a, "bits"_a, "rows"_a, "columns"_a, "scales"_a, "refers"_a, "symbols"_a,
          "errors"_a, "left"_a.noconvert());
    m.def(
        "inter_decode_symbols",
        [](const nb::bytes &payload, size_t channels, size_t height, size_t width, int bits, int scaling, float lo,
           float hi, const nb::bytes &centres, size_t rows, size_t columns, const ConstBytes1 &old_symbols,
           const ConstBytes1 &old_errors, const Bytes1 &symbols, const Bytes1 &errors, int threads) {
            inter_decode(payload, channels, height, width, bits, scaling, lo, hi, centres, rows, columns, old_symbols,
                         old_errors, symbols, errors, nullptr, threads);
        },
        "payload"_a, "channels"_a, "height"_a, "width"_a, "bits"_a, "scaling"_a, "lo"_a, "hi"_a, "centres"_a, "rows"_a,
        "columns"_a, "old_symbols"_a, "old_errors"_a, "symbols"_a.noconvert(), "errors"_a.noconvert(), "threads"_a);
    m.def(
        "inter_decode_floats",
        [](const nb::bytes &payload, size_t channels, size_t height, size_t width, int bits, int scaling, float lo,
           float hi, const nb::bytes &centres, size_t rows, size_t columns, const ConstBytes1 &old_symbols,
           const ConstBytes1 &old_errors, const Bytes1 &symbols, const Bytes1 &errors, const Floats1 &out,
           int threads) {
            inter_decode(payload, channels, height, width, bits, scaling, lo, hi, centres, rows, columns, old_symbols,
                         old_errors, symbols, errors, &out, threads);
        },
        "payload"_a, "channels"_a, "height"_a, "width"_a, "bits"_a, "scaling"_a, "lo"_a, "hi"_a, "centres"_a, "rows"_a,
        "columns"_a, "old_symbols"_a, "old_errors"_a, "symbols"_a.noconvert(), "errors"_a.noconvert(),
        "out"_a.noconvert(), "threads"_a);
    m.def("context_lanes", &context_lanes, "payload"_a, "channels"_a, "height"_a, "width"_a, "bits"_a, "scaling"_a,
          "lo"_a, "hi"_a, "centres"_a, "rows"_a, "columns"_a, "at"_a, "ranges"_a.noconvert(),
          "what"_a.noconvert(), "lanes"_a.noconvert());
    m.def("context_tables_crc", &latentseg::context_tables_crc);
    nb::module_::import_("atexit").attr("register")(nb::cpp_function(&latentseg::Workers::stop));
}
