// The head of coders 2 and 3's payload: channels' parameters and lanes' lengths, as a run of bits (docs/format.md). The Python
// twin is bitstream/context_payload.py.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "context_model.h"
#include "payload.h"

namespace latentseg {

struct Channel {
    Mode mode;
    uint8_t f, g, centre;
};

inline constexpr int kOrderBits = 4;
// A lane has less than 2^26 bytes, so that no number needs more in front of its one.
inline constexpr int kMostZeros = 26;

// The channel that the first one's parameters are differences to.
struct Before {
    int mode = static_cast<int>(Mode::centred), f = 16, g = 16, centre;
    explicit Before(int bits) : centre(1 << (bits - 1)) {}
};

inline uint64_t zigzag(int64_t step) { return static_cast<uint64_t>(step < 0 ? -2 * step - 1 : 2 * step); }

class HeadWriter {
public:
    explicit HeadWriter(std::vector<uint8_t> &out) : out_(out) {}

    // At most 56 bits.
    void put(uint64_t value, int width) {
        held_ |= value << count_;
        for (count_ += width; count_ >= 8; count_ -= 8, held_ >>= 8) out_.push_back(static_cast<uint8_t>(held_));
    }

    // In the exponential-Golomb code of this order.
    void put_signed(int64_t step, int order) {
        const uint64_t number = zigzag(step);
        const int zeros = zeros_of(number, order);
        put(uint64_t{1} << zeros, zeros + 1);
        put(number - (((uint64_t{1} << zeros) - 1) << order), zeros + order);
    }

    void finish() {
        if (count_) put(0, 8 - count_);
    }

    static int zeros_of(uint64_t number, int order) { return std::bit_width((number >> order) + 1) - 1; }

private:
    std::vector<uint8_t> &out_;
    uint64_t held_ = 0;
    int count_ = 0;
};

// Reads numbers from a byte on; past the payload's end there are zeros, and std::invalid_argument.
class HeadReader {
public:
    HeadReader(const uint8_t *payload, size_t size, size_t from) : payload_(payload), size_(size), at_(8 * from) {}

    // At most 57 bits.
    uint64_t take(int width) {
        const uint64_t value = window() & ((uint64_t{1} << width) - 1);
        at_ += static_cast<size_t>(width);
        if (at_ > 8 * size_)
            damaged(std::to_string(size_) + " bytes, and the channels or lane lengths go on");
        return value;
    }

    int64_t take_signed(int order) {
        const int zeros = std::countr_zero(window());
        if (zeros > kMostZeros) damaged("a number among the channels or lane lengths is cut or too long");
        at_ += static_cast<size_t>(zeros) + 1;
        const uint64_t number = (((uint64_t{1} << zeros) - 1) << order) + take(zeros + order);
        const auto half = static_cast<int64_t>(number >> 1);
        return number & 1 ? -half - 1 : half;
    }

    // Whole bytes that are not begun.
    size_t left() const { return size_ - (at_ + 7) / 8; }

    // The byte behind the head.
    size_t finish() {
        if (take(static_cast<int>(-at_ % 8))) damaged("the bits behind the lane lengths are not 0");
        return at_ / 8;
    }

private:
    // The next bits, at least 57.
    uint64_t window() const {
        const size_t byte = at_ / 8;
        uint64_t v = 0;
        if (size_ >= 8 && byte <= size_ - 8)
            std::memcpy(&v, payload_ + byte, 8);
        else if (byte < size_)
            std::memcpy(&v, payload_ + byte, size_ - byte);
        return v >> at_ % 8;
    }

    const uint8_t *payload_;
    size_t size_, at_;
};

// sizes: the lanes' bytes of the channels that are not constant, [channel][tile].
inline void write_head(const std::vector<Channel> &channels, const std::vector<uint32_t> &sizes, size_t tiles, int bits,
                       std::vector<uint8_t> &out) {
    HeadWriter writer(out);
    Before before(bits);
    const auto put = [&writer](int value, int &last) {
        writer.put_signed(value - last, 0);
        last = value;
    };
    for (const auto [mode, f, g, centre] : channels) {
        put(static_cast<int>(mode), before.mode);
        if (mode != Mode::constant) {
            put(f, before.f);
            put(g, before.g);
        }
        if (prediction(mode) != Mode::previous) put(centre, before.centre);
    }
    if (!sizes.empty()) {
        const auto step = [&](size_t i) { return int64_t{sizes[i]} - (i < tiles ? 0 : int64_t{sizes[i - tiles]}); };
        uint64_t least = UINT64_MAX;
        int best = 0;
        for (int order = 0; order < 1 << kOrderBits; ++order) {
            uint64_t total = 0;
            for (size_t i = 0; i < sizes.size(); ++i)
                total += static_cast<uint64_t>(2 * HeadWriter::zeros_of(zigzag(step(i)), order) + 1 + order);
            if (total >= least) continue;
            least = total;
            best = order;
        }
        writer.put(static_cast<uint64_t>(best), kOrderBits);
        for (size_t i = 0; i < sizes.size(); ++i) writer.put_signed(step(i), best);
    }
    writer.finish();
}

// last: the last mode that there is.
inline std::vector<Channel> read_channels(HeadReader &reader, size_t count, int bits, Mode last) {
    // Each channel has at least two bits.
    if (count > 4 * reader.left()) damaged("it is too short for its channels");
    std::vector<Channel> channels(count);
    Before now(bits);
    // |differences| are below 2^27.
    const auto take = [&reader](int &last) { last += static_cast<int>(reader.take_signed(0)); };
    const auto within = [](int value, int limit) { return value >= 0 && value < limit; };
    for (size_t i = 0; i < count; ++i) {
        take(now.mode);
        const bool constant = now.mode == static_cast<int>(Mode::constant);
        if (!constant) {
            take(now.f);
            take(now.g);
        }
        const bool previous = prediction(static_cast<Mode>(now.mode)) == Mode::previous;
        if (!previous) take(now.centre);
        if (!within(now.mode, static_cast<int>(last) + 1) || !within(now.f, kSteps) || !within(now.g, kSteps) || !within(now.centre, 1 << bits))
            damaged("channel " + std::to_string(i) + " has parameters [" + std::to_string(now.mode) + ", " +
                    std::to_string(now.f) + ", " + std::to_string(now.g) + ", " + std::to_string(now.centre) + "]");
        channels[i] = {static_cast<Mode>(now.mode), static_cast<uint8_t>(constant ? 0 : now.f),
                       static_cast<uint8_t>(constant ? 0 : now.g),
                       static_cast<uint8_t>(previous ? 0 : now.centre)};
    }
    return channels;
}

}  // namespace latentseg
