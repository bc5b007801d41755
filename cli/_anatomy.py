"""What `inspect` says about the inside of a stream's frames: bytes by part, lanes' overhead, rate by channel."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ..bitstream.anatomy import FILL_BITS, Anatomy, dissect
from ..bitstream.context_payload import is_key
from ..bitstream.frames import FRAME_HEADER_BYTES
from ..bitstream.header import TILED_CODERS, StreamHeader

# Taking a frame apart costs about 0.4 microseconds a lane and 15 to 90 a Huffman table, 0.1 to 1.2 ms for usual frames.
# So of a long stream evenly spaced frames are taken: at most this many, and fewer where a frame has very many lanes.
MOST_FRAMES = 256
_MOST_LANES = 1 << 19
_LANES_A_TABLE = 150

_GOLDEN = 0x9E3779B1  # 2^32 over the golden ratio: its multiples spread evenly, and keep no other number's rhythm

_SHOWN = 8  # channels that the text names


class Sample:
    """Evenly spaced frames of a stream whose length is not known before its end.

    Takes every frame until it has as many as it may; then it gives up every second one, and from there on takes every
    second, and so on. So of a stream that is longer than that, about half as many frames are taken, or more. Of coder
    "inter" it is half of the frames, but not every second one: key frames come in a rhythm, and would be all or none.
    """

    def __init__(self, header: StreamHeader) -> None:
        self._header = header
        self._limit = max(1, min(MOST_FRAMES, _MOST_LANES // _cost(header)))
        self._stride = 1
        self._seen = 0
        self._taken: list[tuple[int, Anatomy]] = []

    def add(self, payload: bytes) -> None:
        """The stream's next frame. Raises InputError for one that is taken and cannot be taken apart."""
        number = self._seen
        self._seen += 1
        while self._takes(number) and len(self._taken) >= self._limit:
            self._stride *= 2
            self._taken = [(taken, anatomy) for taken, anatomy in self._taken if self._takes(taken)]
        if self._takes(number):
            self._taken.append((number, dissect(payload, self._header)))

    def _takes(self, number: int) -> bool:
        if self._header.coder == "inter":
            return (number * _GOLDEN & 0xFFFFFFFF) * self._stride < 1 << 32
        return number % self._stride == 0

    def report(self) -> dict[str, Any]:
        """JSON keys `anatomy` and `channel_bits_per_symbol`: means over the frames taken, None where there are none."""
        taken = [anatomy for _, anatomy in self._taken]
        if not taken:
            return {"anatomy": None, "channel_bits_per_symbol": None}

        def mean(values: Sequence[float]) -> float:
            return math.fsum(values) / len(taken)

        lanes = mean([a.count for a in taken])
        anatomy = {
            "frames": len(taken),
            "frame_header": FRAME_HEADER_BYTES,
            "scales": mean([a.scales for a in taken]),
            "tables": mean([a.tables for a in taken]),
            "lane_lengths": mean([a.lengths for a in taken]),
            "lane_bytes": mean([a.lanes for a in taken]),
            "lanes": lanes,
            "lane_states": mean([a.state_bits for a in taken]) / 8,
            "lane_fill": FILL_BITS * lanes / 8,
            "lane_overhead": mean([a.lane_overhead for a in taken]),
        }
        channels = [a.channels for a in taken if a.channels is not None]
        symbols = self._header.symbols // self._header.latent_shape[0]
        rates = (8 * sum(channels[1:], channels[0]) / (len(taken) * symbols)).tolist() if channels else None
        return {"anatomy": anatomy, "channel_bits_per_symbol": rates}


class Kinds:
    """Which frames of a stream of coder "inter" stand alone, and what each kind takes."""

    def __init__(self, header: StreamHeader) -> None:
        self._header = header
        self._keys: list[int] = []
        self._inter: list[int] = []
        self._last_key: int | None = None
        self._interval: int | None = None

    def add(self, payload: bytes, index: int) -> None:
        """A frame that decodes."""
        if not is_key(payload, self._header):
            self._inter.append(len(payload))
            return
        self._keys.append(len(payload))
        if self._last_key is not None:
            self._interval = max(index - self._last_key, self._interval or 0)
        self._last_key = index

    def report(self) -> dict[str, Any] | None:
        """JSON key `kinds`; None for the other coders."""
        if self._header.coder != "inter":
            return None
        return {
            "key_frames": len(self._keys),
            "key_bytes": statistics.fmean(self._keys) if self._keys else None,
            "inter_frames": len(self._inter),
            "inter_bytes": statistics.fmean(self._inter) if self._inter else None,
            "key_interval": self._interval,
        }


def kind_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Lines for people, out of `Kinds.report`."""
    if found is None:
        return []
    every = f", every {found['key_interval']} frames at most" if found["key_interval"] else ""
    rest = f"; {found['inter_frames']} inter frames, mean {found['inter_bytes']:.0f}" if found["inter_frames"] else ""
    return [("key frames", f"{found['key_frames']}{every}, mean {found['key_bytes']:.0f} bytes{rest}")]


def _cost(header: StreamHeader) -> int:
    """A frame's lanes, and its tables in lanes that cost the same."""
    c, h, w = header.latent_shape
    if header.coder in TILED_CODERS:
        rows, columns = header.tile
        return c * math.ceil(h / rows) * math.ceil(w / columns)
    runs, size = (c, h * w) if header.coder == "huffman-channel" else (1, c * h * w)
    return runs * (math.ceil(size / header.lane_symbols) + _LANES_A_TABLE)


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people, out of inspect's report on a stream."""
    anatomy, rates = report["anatomy"], report["channel_bits_per_symbol"]
    if anatomy is None:
        return []
    tiled = report["coder"] in TILED_CODERS
    of = "" if anatomy["frames"] == report["frames"] else f" (means of {anatomy['frames']} evenly spaced frames)"
    total = sum(anatomy[key] for key in ("frame_header", "scales", "tables", "lane_lengths", "lane_bytes"))
    states = f", {anatomy['lane_states']:.0f} states" if tiled else ""
    return [
        (
            "frame bytes",
            f"{anatomy['frame_header']} header, {anatomy['scales']:.0f} scales, {anatomy['tables']:.0f} "
            f"{'channel parameters' if tiled else 'code tables'}, {anatomy['lane_lengths']:.0f} lane lengths, "
            f"{anatomy['lane_bytes']:.0f} lanes{of}",
        ),
        (
            "lanes",
            f"{anatomy['lanes']:.0f} a frame; overhead {anatomy['lane_overhead']:.0f} bytes, "
            f"{100 * anatomy['lane_overhead'] / total:.1f} %: {anatomy['lane_lengths']:.0f} lengths{states}, "
            f"about {anatomy['lane_fill']:.0f} filling",
        ),
        ("channels", _channels(rates)),
    ]


def _channels(rates: list[float] | None) -> str:
    if rates is None:
        return "one code for all, and lanes that run through them: no rate by channel"
    named = sorted(range(len(rates)), key=lambda c: -rates[c])[:_SHOWN] if len(rates) > _SHOWN else range(len(rates))
    listed = ", ".join(f"{c}: {rates[c]:.3f}" for c in named)
    if len(rates) <= _SHOWN:
        return f"bits/symbol of each: {listed}"
    return f"{min(rates):.3f} to {max(rates):.3f} bits/symbol, median {statistics.median(rates):.3f}; most: {listed}"
