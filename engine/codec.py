"""What a bundle's codec is: the facts that a stream must agree with, and the quantisation steps that it may be used at.

A codec of a fixed range has one more degree of freedom than its weights: with a step s its symbols are float2int of the
latent over (s lo, s hi), which is round(z / s) for the compact codecs, and s q is what a receiver gets. A small step
costs many bits and loses little, a large one the other way round. The range stands in the stream's header, so that a
decoder needs to know nothing of steps; the networks behind it do, and a bundle says which steps they are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..bitstream import Scaling, StreamHeader
from ..bitstream.header import DEFAULT_CODER, DEFAULT_TILE, Coder
from ..errors import ArtifactError, UsageError

ONE_STEP = (1.0, 1.0)
MAX_STEP = 1000  # steps lie between 1 / MAX_STEP and MAX_STEP, whatever was trained
UNNAMED_CODEC = bytes(32)
_TOLERANCE = 1e-6  # of a header's range, which is kept as float32
_OTHER_BUNDLE = "use the bundle that encoded the stream, or encode the source again with this one"


@dataclass(frozen=True)
class CodecSpec:
    """What a stream must agree with to be this codec's.

    Parameters
    ----------
    name: the codec's registry name.
    id: 32 bytes, SHA-256 of the codec's weights; every stream names it in its header.
    channels: C of the latent (C, h, w).
    stride: source pixels per latent position, along each axis.
    bits: n; symbols lie in [0, 2^n), 1 <= n <= 8.
    scaling: float2int's range, per tensor, per channel or fixed, or its codebook.
    coder: which entropy coder its streams are written with; one whose frames stand alone.
    tile: (rows, columns) of a lane of coder "context"; (0, 0) with the others.
    steps: lowest and highest quantisation step that codec and latent networks are for (trained or measured there), in
        units of the fixed range's own; 1 lies between them.
    """

    name: str
    id: bytes
    channels: int
    stride: int
    bits: int
    scaling: Scaling
    coder: Coder = DEFAULT_CODER
    tile: tuple[int, int] = DEFAULT_TILE
    steps: tuple[float, float] = ONE_STEP

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of one frame: h = ceil(height / stride), w = ceil(width / stride)."""
        return self.channels, -(-height // self.stride), -(-width // self.stride)

    def scaling_at(self, step: float) -> Scaling:
        """The scaling of a stream whose quantisation step is `step`; 1 is the codec's own.

        Raises UsageError for a step that is no positive number or outside `steps`, or where the scaling is not fixed.
        """
        if not (0 < step < math.inf):
            raise UsageError(f"a quantisation step of {step}, expected a positive number")
        if step == 1:
            return self.scaling
        if self.scaling.mode != "fixed":
            raise UsageError(
                f"a quantisation step of {step:g} for codec '{self.name}', whose scaling is '{self.scaling.mode}'",
                hint="only codecs of scaling 'fixed' (compact-codec) have a step to choose",
            )
        if not self.steps[0] <= step <= self.steps[1]:
            raise UsageError(
                f"a quantisation step of {step:g}, but codec '{self.name}' and its networks are for "
                f"{_range_text(self.steps)}",
                hint="latentseg bundles shows every bundle's steps; training with --step-range makes networks for more",
            )
        return Scaling("fixed", step * self.scaling.lo, step * self.scaling.hi)

    def coder_at(self, key_interval: int) -> Coder:
        """The coder of a stream with a key frame at least every so many frames: the codec's own for 1, else "inter".

        0: the first frame alone is a key frame. Raises UsageError for less, or where the codec's own is not "context".
        """
        if key_interval < 0:
            raise UsageError(
                f"a key frame every {key_interval} frames, expected 1 or more, or 0 for the first one alone"
            )
        if key_interval == 1:
            return self.coder
        if self.coder != "context":
            raise UsageError(
                f"a key interval of {key_interval} for codec '{self.name}', whose coder is '{self.coder}'",
                hint="only codecs of coder 'context' have streams whose frames refer to each other",
            )
        return "inter"

    def step_of(self, scaling: Scaling) -> float | None:
        """The step that a stream of this scaling has, to six digits; None where neither has a fixed range.

        Raises ArtifactError for a fixed range that is no multiple of the codec's.
        """
        own = self.scaling
        if "fixed" not in (scaling.mode, own.mode) or scaling.mode != own.mode:
            return None
        if scaling == own:
            return 1.0
        span = own.hi - own.lo
        step = (scaling.hi - scaling.lo) / span if span else 0.0
        error = max(abs(scaling.lo - step * own.lo), abs(scaling.hi - step * own.hi))
        # Not above 0: with a codec of one single value, or a stream of one, no step can be told.
        if step <= 0 or error > _TOLERANCE * step * max(abs(own.lo), abs(own.hi)):
            raise ArtifactError(
                f"the stream's symbols span {scaling.lo:g} to {scaling.hi:g}, expected a multiple of {own.lo:g} to "
                f"{own.hi:g} ('{self.name}')",
                hint=_OTHER_BUNDLE,
            )
        return float(f"{step:.6g}")

    def check_stream(self, header: StreamHeader, owner: str) -> None:
        """Raise ArtifactError unless a stream with this header is this codec's own. owner: the bundle's name."""
        found = bytes(header.codec_id)
        if found != self.id:
            what = "names no codec" if found == UNNAMED_CODEC else f"was written by codec {found.hex()[:16]}"
            raise ArtifactError(
                f"the stream {what}, expected {self.id.hex()[:16]} ('{self.name}', of bundle '{owner}')",
                hint=_OTHER_BUNDLE,
            )
        if header.bits != self.bits:
            raise ArtifactError(f"the stream has {header.bits} bits a symbol, expected {self.bits} ('{self.name}')")
        channels, h, w = header.latent_shape
        if channels != self.channels:
            raise ArtifactError(f"the stream has {channels} latent channels, expected {self.channels}")
        if header.source_size != (0, 0):
            expected = self.latent_shape(*header.source_size)
            if (channels, h, w) != expected:
                height, width = header.source_size
                raise ArtifactError(
                    f"the stream's latent is {channels}x{h}x{w}, expected {expected[0]}x{expected[1]}x{expected[2]} "
                    f"for frames of {height}x{width} at stride {self.stride}"
                )
        self._check_scaling(header.scaling, owner)

    def _check_scaling(self, scaling: Scaling, owner: str) -> None:
        if "codebook" in (scaling.mode, self.scaling.mode) and scaling != self.scaling:
            raise ArtifactError(
                f"the stream's scaling is {_scaling_text(scaling)}, expected {_scaling_text(self.scaling)} "
                f"('{self.name}')",
                hint=_OTHER_BUNDLE,
            )
        step = self.step_of(scaling)
        if step is None:
            return
        lowest, highest = self.steps
        if not lowest * (1 - _TOLERANCE) <= step <= highest * (1 + _TOLERANCE):
            raise ArtifactError(
                f"the stream's quantisation step is {step:g}, but the networks of bundle '{owner}' are for "
                f"{_range_text(self.steps)}",
                hint="encode the source again with one of these, or use a bundle that is for the stream's",
            )


def _range_text(steps: tuple[float, float]) -> str:
    return "1 alone" if steps == ONE_STEP else f"{steps[0]:g} to {steps[1]:g}"


def _scaling_text(scaling: Scaling) -> str:
    if scaling.mode != "codebook":
        return scaling.mode
    return f"a codebook of {len(scaling.centres)} centres, " + ", ".join(f"{c:.6g}" for c in scaling.centres[:8])
