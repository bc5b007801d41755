// Stands in for context_rows.cpp in the fuzzers' builds: on demand, every row goes through all of its loops that this
// machine can run, each in blocks of exactly a row's size, and they must agree to the bit. Address sanitizers do not
// see what the gathers of the vector loops read; it is what the plain loop reads, since places and states come out equal.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#define best_decode_row fastest_decode_row
#include "../../kernels/native/context_rows.cpp"
#undef best_decode_row

namespace latentseg {

DecodeRow best_decode_row(bool refers);

namespace {

template <bool kRefers>
std::vector<DecodeRow> loops() {
    std::vector<DecodeRow> all{decode_row_plain<kRefers>};
#if defined(LATENTSEG_X86_VECTORS)
    if (__builtin_cpu_supports("avx2")) all.push_back(avx2::decode_row<kRefers>);
    if (fastest_decode_row(kRefers) == avx512::decode_row<kRefers>) all.push_back(avx512::decode_row<kRefers>);
#endif
    return all;
}

template <bool kRefers>
void decode_row_by_all(Group &group, const uint8_t *bits, const uint32_t *decoding, uint8_t *symbols, uint8_t *errors,
                       int columns, bool first, int top, const uint8_t *previous, const uint8_t *around) {
    static const std::vector<DecodeRow> kLoops = loops<kRefers>();
    const size_t n = static_cast<size_t>(columns) * kLanes;
    const Group before = group;
    std::unique_ptr<uint8_t[]> row[2], old[2];
    for (int i = 0; kRefers && i < 2; ++i) {
        old[i].reset(new uint8_t[n]);
        std::memcpy(old[i].get(), i ? around : previous, n);
    }
    for (size_t i = 0; i < kLoops.size(); ++i) {
        Group after = before;
        std::unique_ptr<uint8_t[]> s(new uint8_t[n]), e(new uint8_t[n + kLanes]);
        std::memcpy(s.get(), symbols, n);
        std::memcpy(e.get(), errors, n + kLanes);
        kLoops[i](after, bits, decoding, s.get(), e.get(), columns, first, top, old[0].get(), old[1].get());
        if (i == 0) {
            group = after;
            row[0] = std::move(s);
            row[1] = std::move(e);
        } else if (std::memcmp(&after, &group, sizeof group) || std::memcmp(s.get(), row[0].get(), n) ||
                   std::memcmp(e.get(), row[1].get(), n + kLanes)) {
            std::fprintf(stderr, "loop %zu of context_rows.cpp gives another row than the plain one\n", i);
            std::abort();
        }
    }
    std::memcpy(symbols, row[0].get(), n);
    std::memcpy(errors, row[1].get(), n + kLanes);
}

}  // namespace

bool all_row_loops = true;

DecodeRow best_decode_row(bool refers) {
    if (!all_row_loops) return fastest_decode_row(refers);
    return refers ? decode_row_by_all<true> : decode_row_by_all<false>;
}

}  // namespace latentseg
