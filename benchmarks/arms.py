"""The arms of the measurement: each turns prepared bytes in memory into uint8 label maps of the source's size, or, with
a bundle of classifiers, into the probabilities of the classes.

An arm is timed from outside (`measure.py`); inside it says through a clock how long each stage took. Every RGB arm is
given the same RGB network, and every network the same number of threads. The pixel decoders may use as many; the
entropy decoder runs by default as the engine runs it, on one: a second thread takes longer to start than it saves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..engine.manifest import CLASSIFYING_ROLES
from . import jpeg
from .measure import StageClock
from .sender import Packets, Sent

if TYPE_CHECKING:
    from ..bitstream import StreamHeader
    from ..engine.roles import Classifier, Decompressor, RgbClassifier, RgbSegmenter, Segmenter

    Latent = Segmenter | Classifier
    Rgb = RgbSegmenter | RgbClassifier

Answers = NDArray[Any]  # label maps (N, H, W) uint8, or probabilities (N, classes) float32

_CLASSIFIER_OF = {"segmenter": "classifier", "rgb_segmenter": "rgb_classifier"}


def answers(network: Latent | Rgb, clock: StageClock, *inputs: Any) -> Answers:
    """The last step of every arm, under its own stage: labels, or a classifier's probabilities."""
    step: Any = network
    if network.role in CLASSIFYING_ROLES:
        with clock.stage("classify"):
            return step.probabilities(*inputs)  # type: ignore[no-any-return]
    with clock.stage("segment"):
        return step.labels(*inputs)  # type: ignore[no-any-return]


class Arm(ABC):
    """One way from bytes to labels or classes.

    Attributes
    ----------
    name, description: for tables. roles: the bundle's networks that run for each frame; both as of a bundle that
    segments (`roles_of` and `description_of` know the others).
    sizes: bytes on the wire, one entry a frame. detail: the setting, as plain values for a row.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]

    def __init__(self, sizes: list[int], detail: dict[str, Any]) -> None:
        self.sizes = sizes
        self.detail = detail

    def start(self, batch: int) -> None:  # noqa: B027 - most arms have no state between frames
        """Make ready for a pass from frame 0 in batches of `batch`; not timed."""

    @abstractmethod
    def run(self, first: int, last: int, clock: StageClock) -> Answers:
        """Label maps `(last - first, H, W)` uint8 of frames `first` to `last` (exclusive), from their bytes; of a
        classifier `(last - first, classes)` float32."""

    def close(self) -> None:  # noqa: B027
        """Release what the arm itself opened (never the networks, which it shares)."""


class Compressed(Arm):
    """bytes -> entropy decode + int2float -> compressed-domain network."""

    name = "compressed"
    description = "bytes, entropy decode, segmenter"
    roles = ("segmenter",)

    def __init__(self, network: Latent, header: StreamHeader, sent: Sent, threads: int = 1) -> None:
        super().__init__(sent.sizes, {**sent.detail, "decoder_threads": threads})
        self._network, self._header, self._payloads, self._threads = network, header, sent.payloads, threads

    def run(self, first: int, last: int, clock: StageClock) -> Answers:
        with clock.stage("entropy_decode"):
            latents = self._network.entropy_decode(self._payloads[first:last], self._header, self._threads)
        return answers(self._network, clock, latents, self._header.source_size)


class LearnedDecode(Arm):
    """The same bytes -> entropy decode + int2float -> decompressor -> RGB network."""

    name = "learned-decode"
    description = "bytes, entropy decode, decompressor, RGB segmenter"
    roles = ("decompressor", "rgb_segmenter")

    def __init__(
        self, decompressor: Decompressor, rgb: Rgb, header: StreamHeader, sent: Sent, threads: int = 1
    ) -> None:
        super().__init__(sent.sizes, {**sent.detail, "decoder_threads": threads})
        self._decompressor, self._rgb, self._header = decompressor, rgb, header
        self._payloads, self._threads = sent.payloads, threads

    def run(self, first: int, last: int, clock: StageClock) -> Answers:
        with clock.stage("entropy_decode"):
            latents = self._decompressor.entropy_decode(self._payloads[first:last], self._header, self._threads)
        with clock.stage("decode"):
            frames = self._decompressor.frames(latents, self._header.source_size)
        return answers(self._rgb, clock, frames)


class _Jpeg(Arm):
    """JPEG bytes -> Pillow -> RGB network. A pool of `threads` decodes a batch (Pillow frees the interpreter)."""

    roles = ("rgb_segmenter",)

    def __init__(self, rgb: Rgb, sent: Sent, threads: int) -> None:
        super().__init__(sent.sizes, {**sent.detail, "decoder_threads": threads})
        self._rgb, self._payloads = rgb, sent.payloads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(self, first: int, last: int, clock: StageClock) -> Answers:
        with clock.stage("decode"):
            payloads = self._payloads[first:last]
            if self._pool is None or len(payloads) == 1:
                decoded = [jpeg.decode(payload) for payload in payloads]
            else:
                decoded = list(self._pool.map(jpeg.decode, payloads))
            frames = np.stack(decoded) if len(decoded) > 1 else decoded[0][None]
        return answers(self._rgb, clock, frames)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class JpegAtRate(_Jpeg):
    name = "jpeg"
    description = "JPEG of the codec's size, decode, RGB segmenter"


class JpegQ95(_Jpeg):
    name = "jpeg-q95"
    description = "JPEG quality 95, decode, RGB segmenter"


class H264(Arm):
    """The video's own packets -> PyAV -> RGB network.

    H.264 predicts between frames, so that frames come out only in order, from the clip's start: every pass opens a
    fresh decoder (not timed) and runs through. Batch 1 decodes with slice threads, which add no delay; larger batches
    with frame threads, which decode ahead and are the faster kind for throughput.
    """

    name = "h264"
    description = "the video's own packets, decode, RGB segmenter"
    roles = ("rgb_segmenter",)

    def __init__(self, rgb: Rgb, packets: Packets, threads: int) -> None:
        detail = {
            "codec": packets.codec,
            "packets": len(packets.data),
            "decoder_threads": threads,
            "thread_type": {"batch 1": "SLICE", "larger": "FRAME"},
        }
        super().__init__(packets.sizes(), detail)
        import av

        self._rgb, self._packets, self._threads = rgb, packets, threads
        self._av_packets = [av.Packet(data) for data in packets.data]
        self._ready: deque[NDArray[np.uint8]] = deque()
        self.start(1)

    def start(self, batch: int) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self._decoder: Any = av.CodecContext.create(self._packets.codec, "r")
        if self._packets.extradata is not None:
            self._decoder.extradata = self._packets.extradata
        self._decoder.thread_count = self._threads
        self._decoder.thread_type = "SLICE" if batch == 1 else "FRAME"
        self._reformatter = VideoReformatter()
        self._ready.clear()
        self._next_packet = self._next_frame = 0

    def decode(self, first: int, last: int) -> NDArray[np.uint8]:
        """RGB frames `(last - first, H, W, 3)`; `first` must be where the last call ended, or 0 after `start`."""
        if first != self._next_frame:
            raise ValueError(f"inter-coded frames come in order: next is {self._next_frame}, asked for {first}")
        while len(self._ready) < last - first:
            if self._next_packet > len(self._av_packets):
                raise ValueError(f"the clip's {len(self._av_packets)} packets hold no frame {last - 1}")
            # After the last packet, None drains what the decoder still holds back for reordering.
            ended = self._next_packet == len(self._av_packets)
            packet = None if ended else self._av_packets[self._next_packet]
            self._next_packet += 1
            for frame in self._decoder.decode(packet):
                rgb: Any = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
                self._ready.append(rgb)
        self._next_frame = last
        frames = [self._ready.popleft() for _ in range(last - first)]
        return np.stack(frames) if len(frames) > 1 else frames[0][None]

    def gives(self, index: int, frame: NDArray[np.uint8]) -> bool:
        """Whether frame `index`, next in order, decodes to `frame` (to 2 levels on average, for colour conversion)."""
        found = self.decode(index, index + 1)[0]
        return found.shape == frame.shape and float(np.mean(np.abs(found.astype(np.int16) - frame))) <= 2.0

    def run(self, first: int, last: int, clock: StageClock) -> Answers:
        with clock.stage("decode"):
            frames = self.decode(first, last)
        return answers(self._rgb, clock, frames)


ARMS: tuple[type[Arm], ...] = (Compressed, LearnedDecode, JpegAtRate, JpegQ95, H264)
ARM_NAMES: tuple[str, ...] = tuple(arm.name for arm in ARMS)


def roles_of(kind: type[Arm], classifies: bool) -> tuple[str, ...]:
    """The roles that an arm runs, of a bundle that segments or classifies."""
    return tuple(_CLASSIFIER_OF.get(role, role) for role in kind.roles) if classifies else kind.roles


def description_of(kind: type[Arm], classifies: bool) -> str:
    """What an arm does, with a bundle that segments or classifies."""
    return kind.description.replace("segmenter", "classifier") if classifies else kind.description
