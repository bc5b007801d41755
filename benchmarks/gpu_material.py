"""What the arms on a GPU are given, and what they must answer: a clip's bytes in each form, and the CPU's labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.bundle import Bundle
from ..engine.placement import Placement
from ..engine.roles import Compressor, Decompressor, RgbSegmenter, Segmenter
from ..errors import VerificationError
from ..export.verify import synthetic_frames
from .arms import Compressed, JpegAtRate, JpegQ95, LearnedDecode
from .clips import Clip
from .gpu_checks import AGREEMENT
from .gpu_engines import weights
from .measure import StageClock
from .sender import Sent, send_codec, send_jpeg, send_jpeg_near

Labels = NDArray[np.uint8]
# Of the arms whose pixels another JPEG decoder makes than the CPU's.
JPEG_AGREEMENT = 0.97
# Of networks with random weights below fp32: their logits lie near ties, and what is looked for is a wrong buffer.
RANDOM_AGREEMENT = 0.5
# The networks that each arm runs, in order.
ROLES = {
    "compressed": ("segmenter",),
    "learned-decode": ("decompressor", "rgb_segmenter"),
    "jpeg": ("rgb_segmenter",),
    "jpeg-q95": ("rgb_segmenter",),
}


def synthetic_clip(count: int, size: tuple[int, int]) -> Clip:
    """Ramps and stripes, where no clip is given: speed without a data set."""
    return Clip("synthetic", list(synthetic_frames(count, *size)))


class Material:
    """A clip's bytes as each arm takes them, and the CPU engine's labels from the same bytes.

    Attributes
    ----------
    size: (H, W) of the frames.  header: of the stream.
    weights: "random" where the bundle says so of its networks: labels mean nothing then, speed is all; or "trained".
    """

    def __init__(self, bundle: Bundle, clip: Clip) -> None:
        self.bundle, self.clip, self.size = bundle, clip, clip.size
        self.weights = weights(bundle)
        self.header = bundle.header(*clip.size, clip.frame_rate)
        self.sent = cache(self._sent)
        self.truth = cache(self._truth)

    @cached_property
    def _codec(self) -> Sent:
        with Compressor(self.bundle) as compressor:
            return send_codec(compressor, self.header, self.clip.frames)

    def _sent(self, arm: str) -> Sent:
        """The clip as an arm's bytes; both learned arms have the same."""
        if arm == JpegAtRate.name:
            return send_jpeg_near(self.clip.frames, float(np.mean(self._codec.sizes)))
        return send_jpeg(self.clip.frames, 95) if arm == JpegQ95.name else self._codec

    def _truth(self, arm: str, precision: str) -> Labels:
        """The CPU engine's labels of all frames, uint8 (N, H, W): in int8 where the bundle has it, else in fp32."""
        sent, clock, end = self.sent(arm), StageClock(), len(self.clip.frames)
        own = precision == "int8" and all(precision in self.bundle.variants(role) for role in ROLES[arm][-1:])
        placement = Placement(precision=precision if own else "fp32")
        if arm == Compressed.name:
            with Segmenter(self.bundle, placement) as segmenter:
                return _each(Compressed(segmenter, self.header, sent), end, clock)
        with RgbSegmenter(self.bundle, placement) as rgb:
            if arm == LearnedDecode.name:
                with Decompressor(self.bundle) as decompressor:
                    return _each(LearnedDecode(decompressor, rgb, self.header, sent), end, clock)
            kind = JpegAtRate if arm == JpegAtRate.name else JpegQ95
            return _each(kind(rgb, sent, 1), end, clock)

    def check(self, arm: str, precision: str, batch: int) -> Callable[[Iterator[Labels]], float]:
        """Compares batches, from the first on, with the CPU's labels; gives the least agreement of a batch.

        Raises VerificationError below the limit.
        """
        truth = self.truth(arm, precision)
        limits = [AGREEMENT[precision]]
        limits += [JPEG_AGREEMENT] if arm.startswith("jpeg") else []
        limits += [RANDOM_AGREEMENT] if self.weights == "random" and precision != "fp32" else []
        limit = min(limits)

        def compare(batches: Iterator[Labels]) -> float:
            least = 1.0
            for number, labels in enumerate(batches):
                expected = truth[(number * batch + np.arange(batch)) % len(truth)]
                if labels.shape != expected.shape:
                    raise VerificationError(f"{arm}: labels of {labels.shape}, expected {expected.shape}")
                least = min(least, float((labels == expected).mean()))
            if least < limit:
                raise VerificationError(
                    f"{arm}, {precision}, batch {batch}: {least:.4%} of the labels are the CPU's, expected at least "
                    f"{limit:.1%}"
                )
            return round(least, 6)

        return compare

    def rate(self, arm: str) -> dict[str, Any]:
        """Bytes a frame on the wire, framing included, bits a pixel, and the sender's setting."""
        sent = self.sent(arm)
        mean = float(np.mean(sent.sizes))
        return {"bytes_per_frame": mean, "bpp": 8 * mean / math.prod(self.size), "sent": sent.detail}


def _each(arm: Any, count: int, clock: StageClock) -> Labels:
    """Frame by frame: a batch of large frames takes more memory than a CPU machine may have."""
    return np.concatenate([arm.run(index, index + 1, clock) for index in range(count)])
