"""The demo's comparison: every chunk of frames through every arm in turn, and what came out.

The arms themselves are the benchmark's (`benchmarks.arms`); here they are fed while the clip is read, so that a clip of
any length fits into memory.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..benchmarks import jpeg
from ..benchmarks.arms import Arm, Compressed, JpegAtRate, LearnedDecode
from ..benchmarks.measure import STAGES, StageClock
from ..benchmarks.sender import Sent
from ..bitstream import Writer
from ..engine.backends.base import usable_cores
from ..engine.bundle import Bundle
from ..engine.result import Result as Segmented
from ..engine.roles import Compressor, Decompressor, RgbSegmenter, Segmenter
from ..engine.sinks import OverlaySink
from ..engine.sources import open_frames
from ..engine.sources.base import SourceFrame
from ..errors import InputError
from . import _common
from ._picture import side_by_side

CHUNK = 10  # frames between turns: short against any slow drift of the machine, long against the cost of cold caches
JPEG_TRIALS = 3  # frames of a chunk on which the JPEG quality of the codec's size is looked for
FILES = ("demo.lseg", "side-by-side.png", "overlay.mp4")


@dataclass
class ArmResult:
    """What one arm needed and gave, per frame."""

    name: str
    description: str
    milliseconds: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    bytes_per_frame: float = 0.0
    bpp: float = 0.0
    agreement: float = 0.0


@dataclass
class Result:
    """The whole comparison. Times in milliseconds a frame, shares from 0 to 1."""

    frames: int
    width: int
    height: int
    threads: int
    arms: list[ArmResult]
    sender: dict[str, float]
    arms_agree: float
    jpeg_quality: tuple[int, int]  # lowest and highest
    jpeg_reached: bool

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "frames": self.frames,
            "source_size": [self.height, self.width],
            "threads": self.threads,
            "sender_ms": self.sender,
            "arms": [
                {
                    "arm": arm.name,
                    "ms_per_frame": arm.milliseconds,
                    "stage_ms": arm.stages,
                    "fps": 1000 / arm.milliseconds,
                    "bytes_per_frame": arm.bytes_per_frame,
                    "bpp": arm.bpp,
                    "factor_vs_rgb24": 24 / arm.bpp,
                    "agreement": arm.agreement,
                }
                for arm in self.arms
            ],
            "arms_agree": self.arms_agree,
            "jpeg_quality": self.jpeg_quality,
            "jpeg_reached": self.jpeg_reached,
        }


class Sender:
    """Encodes frames with the codec and as JPEG, and appends what is sent to the lists that the arms read from."""

    def __init__(self, compressor: Compressor, writer: Writer) -> None:
        self.codec, self.jpeg = Sent([], []), Sent([], [])
        self.seconds = {"compress": 0.0, "entropy_encode": 0.0}
        self.matches: list[jpeg.Match] = []
        self._compressor, self._writer = compressor, writer

    def send(self, frames: list[SourceFrame]) -> None:
        """A chunk of frames, the JPEGs at the one quality whose size is nearest to the codec's on this chunk."""
        if not self.matches:
            self._compressor.encode(frames[0].rgb[None], self._writer.header)  # the first call pays for allocations
        for frame in frames:
            begin = time.perf_counter()
            latents = self._compressor.latents(frame.rgb[None])
            middle = time.perf_counter()
            (payload,) = self._compressor.entropy_encode(latents, self._writer.header)
            self.seconds["compress"] += middle - begin
            self.seconds["entropy_encode"] += time.perf_counter() - middle
            self.codec.payloads.append(payload)
            self.codec.sizes.append(self._writer.write(payload, frame.timestamp_us))
        trials = [frame.rgb for frame in frames[:: max(1, len(frames) // JPEG_TRIALS)]]
        match = jpeg.nearest_quality(trials, sum(self.codec.sizes[-len(frames) :]) / len(frames))
        self.matches.append(match)
        for frame in frames:
            data = jpeg.encode(frame.rgb, match.quality, optimise=match.optimise)
            self.jpeg.payloads.append(data)
            self.jpeg.sizes.append(len(data))


def compare(args: argparse.Namespace, bundle: Bundle, source_path: str, out: Path) -> Result:
    """Run all arms over a source, and write demo.lseg, side-by-side.png and overlay.mp4 into `out`."""
    placement = _common.placement(args)
    threads = placement.threads or usable_cores()
    placement = replace(placement, threads=threads)
    masks: list[bytes] = []
    with ExitStack() as stack:
        open_ = stack.enter_context
        source = open_(open_frames(source_path))
        compressor = open_(Compressor(bundle, placement))
        segmenter = open_(Segmenter(bundle, placement))
        decompressor = open_(Decompressor(bundle, placement))
        rgb = open_(RgbSegmenter(bundle, placement))
        header = bundle.header(*source.size, source.frame_rate)
        sender = Sender(compressor, Writer(open_((out / FILES[0]).open("wb")), header))
        arms: list[Arm] = [
            Compressed(segmenter, header, sender.codec),
            LearnedDecode(decompressor, rgb, header, sender.codec),
            JpegAtRate(rgb, sender.jpeg, threads),
        ]
        for arm in arms:
            stack.callback(arm.close)
        tally = _Tally(arms)
        total = min(args.frames, source.length or args.frames)
        frames = iter(_common.track(islice(source, args.frames), args, total=total))
        for chunk in _chunks(frames, CHUNK):
            sender.send(chunk)
            first = tally.frames
            if first == 0:
                for _ in range(2):  # first calls allocate and load code; their times would be outliers
                    rgb.labels(chunk[0].rgb[None])
                    for arm in arms:
                        arm.run(0, 1, StageClock())
            labels = tally.run(first, len(chunk))
            tally.compare([rgb.labels(frame.rgb[None])[0] for frame in chunk], labels)
            masks += [zlib.compress(mask.tobytes(), 1) for mask in labels[0]]
            if first <= total // 2:  # replaced until the middle of the clip, so that a clip of any length has one
                at = min(total // 2 - first, len(chunk) - 1)
                panels = [("source", chunk[at].rgb), ("labels from the bytes", labels[0][at])]
                side_by_side(out / FILES[1], [*panels, ("labels after decoding", labels[1][at])], bundle.classes)
    _write_overlay(args, bundle, source_path, masks, out / FILES[2])
    return tally.result(sender, header.source_size, threads)


def _write_overlay(args: argparse.Namespace, bundle: Bundle, source_path: str, masks: list[bytes], path: Path) -> None:
    """The labels over the source's frames, in a second pass: a video encoder works in threads of its own, which would
    have disturbed the times."""
    with open_frames(source_path) as source:
        height, width = source.size
        with OverlaySink(path, bundle.classes, source.frame_rate, overwrite=True) as sink:
            for frame, packed in _common.track(zip(source, masks, strict=False), args, total=len(masks)):
                mask = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, width)
                sink.write(Segmented(frame.index, frame.timestamp_us, mask, rgb=frame.rgb))


class _Tally:
    """Runs the arms in turn and adds up their times and agreements."""

    def __init__(self, arms: list[Arm]) -> None:
        self.frames = 0
        self._arms = arms
        self._clocks = [StageClock() for _ in arms]
        self._seconds = [0.0 for _ in arms]
        self._agreement = [0.0 for _ in arms]
        self._arms_agree = 0.0
        self._turn = 0

    def run(self, first: int, count: int) -> list[list[NDArray[np.uint8]]]:
        """Frames `first` to `first + count` through every arm, one at a time; per arm the labels (H, W) of each.

        Another arm begins with each chunk, so that none always finds the caches as the same other one left them.
        """
        labels: list[list[NDArray[np.uint8]]] = [[] for _ in self._arms]
        order = [(self._turn + place) % len(self._arms) for place in range(len(self._arms))]
        self._turn += 1
        for which in order:
            begin = time.perf_counter()
            for index in range(first, first + count):
                labels[which].append(self._arms[which].run(index, index + 1, self._clocks[which])[0])
            self._seconds[which] += time.perf_counter() - begin
        self.frames += count
        return labels

    def compare(self, reference: list[NDArray[np.uint8]], labels: list[list[NDArray[np.uint8]]]) -> None:
        """Add the share of pixels where each arm has the reference's label, and where the first two arms agree."""
        for which, masks in enumerate(labels):
            self._agreement[which] += sum(map(_agreement, masks, reference))
        self._arms_agree += sum(map(_agreement, labels[0], labels[1]))

    def result(self, sender: Sender, size: tuple[int, int], threads: int) -> Result:
        """Everything as means over the frames seen so far."""
        if not self.frames:
            raise InputError("the source gave no frame")
        height, width = size
        qualities = [match.quality for match in sender.matches]
        arms = []
        for arm, clock, seconds, agreement in zip(
            self._arms, self._clocks, self._seconds, self._agreement, strict=True
        ):
            mean_bytes = sum(arm.sizes) / self.frames
            arms.append(
                ArmResult(
                    name=arm.name,
                    description=arm.description,
                    milliseconds=1e3 * seconds / self.frames,
                    stages={stage: 1e3 * spent / self.frames for stage, spent in clock.seconds.items()},
                    bytes_per_frame=mean_bytes,
                    bpp=8 * mean_bytes / (height * width),
                    agreement=agreement / self.frames,
                )
            )
        return Result(
            frames=self.frames,
            width=width,
            height=height,
            threads=threads,
            arms=arms,
            sender={stage: 1e3 * seconds / self.frames for stage, seconds in sender.seconds.items()},
            arms_agree=self._arms_agree / self.frames,
            jpeg_quality=(min(qualities), max(qualities)),
            jpeg_reached=all(match.reached for match in sender.matches),
        )


def _agreement(mask: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float((mask == other).mean())


def _chunks(frames: Iterator[SourceFrame], size: int) -> Iterator[list[SourceFrame]]:
    while chunk := list(islice(frames, size)):
        yield chunk
