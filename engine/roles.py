"""The roles of a bundle's models, each with its backend, its padding and cropping, and its coder.

Frames are uint8 (N, H, W, 3), any H, W >= 1; latents float32 (N, C, h, w); labels uint8 (N, H, W); probabilities
float32 (N, classes), whose rows sum to 1. A batch has one size. Every step is callable on its own, so that a
measurement can time it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..bitstream import StreamHeader
from ..errors import ArtifactError, UsageError
from ..kernels import entropy
from .backends import Backend
from .backends.base import TensorSpec
from .bundle import Bundle
from .geometry import crop, pad_to_stride
from .placement import Placement

Frames = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]

_FRAMES = ("uint8", 4)
_LATENTS = ("float32", 4)
_LABELS = ("uint8", 3)
_PROBABILITIES = ("float32", 2)


class _Role:
    """A bundle's model of one role, where `placement` says. A context manager; `backend` shows provider and times."""

    role: ClassVar[str]
    ends: ClassVar[tuple[tuple[str, int], tuple[str, int]]]

    def __init__(self, bundle: Bundle, placement: Placement = Placement()) -> None:  # noqa: B008 (frozen)
        self.bundle = bundle
        self.backend: Backend = placement.open(bundle, self.role)
        for spec, (dtype, rank) in zip((self.backend.input, self.backend.output), self.ends, strict=True):
            self._check_end(spec, dtype, rank)
        if self.ends[1] == _PROBABILITIES:
            self._check_classes(self.backend.output.shape[1])

    def _check_end(self, spec: TensorSpec, dtype: str, rank: int) -> None:
        if spec.dtype != np.dtype(dtype) or len(spec.shape) != rank:
            self.close()
            raise ArtifactError(
                f"bundle '{self.bundle.name}': the {self.role}'s {spec}, expected {dtype} with {rank} dimensions",
                hint="export the bundle again: latentseg export",
            )

    def _check_classes(self, found: int | None) -> None:
        expected = len(self.bundle.classes)
        if found not in (None, expected):
            self.close()
            raise ArtifactError(
                f"bundle '{self.bundle.name}': the {self.role} gives {found} classes, the manifest names {expected}",
                hint="export the bundle again: latentseg export",
            )

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _expect(self, output: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if output.shape != shape:
            raise ArtifactError(
                f"bundle '{self.bundle.name}': the {self.role} gave {list(output.shape)}, expected {list(shape)}"
            )
        return output


class Compressor(_Role):
    """Frames to latents, and latents to bytes."""

    role = "compressor"
    ends = (_FRAMES, _LATENTS)

    def latents(self, frames: Frames) -> Latents:
        """(N, H, W, 3) uint8 -> (N, C, ceil(H/s), ceil(W/s)) float32, before float2int."""
        _check_frames(frames)
        n, height, width, _ = frames.shape
        output = self.backend.run(pad_to_stride(frames, self.bundle.codec.stride))
        return self._expect(output, (n, *self.bundle.latent_shape(height, width)))

    def entropy_encode(self, latents: Latents, header: StreamHeader) -> list[bytes]:
        """(N, C, h, w) float32 -> one payload a frame: float2int and entropy coding. NaN or inf raise InputError."""
        return [entropy.encode_latent(latent, header) for latent in latents]

    def encode(self, frames: Frames, header: StreamHeader) -> list[bytes]:
        """(N, H, W, 3) uint8 -> one payload a frame."""
        return self.entropy_encode(self.latents(frames), header)


class _LatentRole(_Role):
    """A role that starts from a stream's payloads."""

    def entropy_decode(self, payloads: Sequence[bytes], header: StreamHeader, threads: int = 1) -> Latents:
        """One payload a frame -> (N, C, h, w) float32, dequantised by int2float; `threads` decode lanes in parallel.

        Each frame alone: those that refer to the one before are read by `kernels.frames.FrameDecoder`.
        Raises InputError where a payload is damaged or refers to another; ArtifactError where the stream is another
        codec's.
        """
        self.bundle.check_stream(header)
        out = np.empty((len(payloads), *header.latent_shape), np.float32)
        for payload, latent in zip(payloads, out, strict=True):
            entropy.decode_latent(payload, header, out=latent, threads=threads)
        return out

    def _check_latents(self, latents: Latents, size: tuple[int, int]) -> None:
        if latents.ndim != 4 or latents.shape[1:] != self.bundle.latent_shape(*size):
            expected = ("N", *self.bundle.latent_shape(*size))
            raise UsageError(
                f"latents are {list(latents.shape)}, expected [{', '.join(map(str, expected))}] "
                f"for frames of {size[0]}x{size[1]}"
            )

    def _from_latents(self, latents: Latents, size: tuple[int, int], tail: tuple[int, ...]) -> npt.NDArray[Any]:
        self._check_latents(latents, size)
        n, _, h, w = latents.shape
        stride = self.bundle.codec.stride
        output = self._expect(self.backend.run(latents), (n, h * stride, w * stride, *tail))
        return crop(output, size)


class Decompressor(_LatentRole):
    """Bytes to latents, and latents to RGB frames: what decoding first costs."""

    role = "decompressor"
    ends = (_LATENTS, _FRAMES)

    def frames(self, latents: Latents, size: tuple[int, int]) -> Frames:
        """(N, C, h, w) float32 -> (N, H, W, 3) uint8, cropped to `size` = (H, W)."""
        return self._from_latents(latents, size, (3,))


class Segmenter(_LatentRole):
    """Bytes to latents, and latents to labels, with no pixel decoded."""

    role = "segmenter"
    ends = (_LATENTS, _LABELS)

    def labels(self, latents: Latents, size: tuple[int, int]) -> Labels:
        """(N, C, h, w) float32 -> (N, H, W) uint8, cropped to `size` = (H, W)."""
        return self._from_latents(latents, size, ())


class RgbSegmenter(_Role):
    """Frames to labels: the baseline, after some decoder."""

    role = "rgb_segmenter"
    ends = (_FRAMES, _LABELS)

    def labels(self, frames: Frames) -> Labels:
        """(N, H, W, 3) uint8 -> (N, H, W) uint8."""
        _check_frames(frames)
        n, height, width, _ = frames.shape
        padded = pad_to_stride(frames, self.bundle.codec.stride)
        output = self._expect(self.backend.run(padded), (n, *padded.shape[1:3]))
        return crop(output, (height, width))


class Classifier(_LatentRole):
    """Bytes to latents, and latents to the probabilities of the bundle's classes, with no pixel decoded."""

    role = "classifier"
    ends = (_LATENTS, _PROBABILITIES)

    def probabilities(self, latents: Latents, size: tuple[int, int]) -> Probabilities:
        """(N, C, h, w) float32 of frames of `size` = (H, W) -> (N, classes) float32.

        Whole latents count: what padded the frames to the codec's stride is seen, too.
        """
        self._check_latents(latents, size)
        return self._expect(self.backend.run(latents), (len(latents), len(self.bundle.classes)))


class RgbClassifier(_Role):
    """Frames to the probabilities of the bundle's classes: the baseline, after some decoder."""

    role = "rgb_classifier"
    ends = (_FRAMES, _PROBABILITIES)

    def probabilities(self, frames: Frames) -> Probabilities:
        """(N, H, W, 3) uint8 -> (N, classes) float32; frames are padded as for the compressor."""
        _check_frames(frames)
        output = self.backend.run(pad_to_stride(frames, self.bundle.codec.stride))
        return self._expect(output, (len(frames), len(self.bundle.classes)))


def _check_frames(frames: npt.NDArray[Any]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise UsageError(f"frames are {frames.dtype}{list(frames.shape)}, expected uint8 [N, H, W, 3], none of them 0")
