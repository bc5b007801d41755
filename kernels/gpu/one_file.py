"""What a one-file engine is fed: bytes in, labels out, the decode inside as a plugin (export/tensorrt_plugin.py).

    words int32 (W,)                 the payloads' bytes, as 32-bit little-endian words; any W in the engine's profile
    lanes int32 (F, tiles, C, 2)     a lane's first byte among them, and its bytes (0: constant channel)
    channels int32 (F, C)            mode + 4 f + 2^8 g + 2^16 centre
    ranges float32 (F, R, 2)         lo and step of int2float; R is C with a range a channel, else 1

    labels uint8 (F, H, W)           padded to the codec's stride
    damaged int32 (F,)               2^31 - 1, or the frame's lowest lane that does not end where its length says

An engine takes batches of any F up to its profile's, of one frame size. Needs NumPy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bitstream.header import StreamHeader
from ...errors import ArtifactError, UsageError
from .batch import Batch, check_gpu_stream, payload_limit, ranges_a_frame

FED: dict[str, str] = {"words": "int32", "lanes": "int32", "channels": "int32", "ranges": "float32"}  # the inputs
LABELS = "uint8"
DAMAGED = "damaged"
FLOATS = ("float32", "float16")
ALIGNMENT = 256  # of an address that an engine is given (NvInferRuntime.h, IExecutionContext::setTensorAddress)

Shape = tuple[Any, ...]


def check_one_file_stream(header: StreamHeader) -> None:
    """Raise ArtifactError for a stream that no GPU decodes, or one with a codebook: the plugin knows ranges alone."""
    check_gpu_stream(header)
    if header.scaling.mode == "codebook":
        raise ArtifactError(
            "a stream with a codebook, expected one of ranges: a one-file engine decodes no other",
            hint="build the engine without --one-file: the kernels then run before it",
        )


@dataclass(frozen=True)
class DecodeSpec:
    """What a plugin's kernel and the engine's inputs follow from.

    bits, tile: of the streams.  latent: (C, h, w) of a frame.  ranges_a_frame: C, or 1 with one range a frame.
    floats: "float32" or "float16", what the segmenter takes.  arch: compute capability of the kernel, such as 90.
    payload_limit: bytes of the largest payload of a frame.
    """

    bits: int
    tile: tuple[int, int]
    latent: tuple[int, int, int]
    ranges_a_frame: int
    floats: str
    arch: int
    payload_limit: int

    @classmethod
    def of(cls, header: StreamHeader, floats: str, arch: int) -> DecodeSpec:
        """For streams like this one. Raises as `check_one_file_stream`, and UsageError for floats."""
        check_one_file_stream(header)
        if floats not in FLOATS:
            raise UsageError(f"floats {floats!r}, expected {' or '.join(FLOATS)}")
        ranges = ranges_a_frame(header)
        return cls(header.bits, header.tile, header.latent_shape, ranges, floats, arch, payload_limit(header))

    @property
    def tiles(self) -> int:
        """Lanes of a channel."""
        _, height, width = self.latent
        return -(-height // self.tile[0]) * -(-width // self.tile[1])

    @property
    def name(self) -> str:
        """The plugin's name, and its node's op_type: another one for all that makes another kernel or launch."""
        latent = "x".join(map(str, self.latent))
        what = f"{self.bits}b_{self.tile[0]}x{self.tile[1]}_{latent}_r{self.ranges_a_frame}_{self.floats}"
        return f"ContextDecode_{what}_sm{self.arch}"

    def fed_shapes(self, words: Any, frames: Any) -> dict[str, Shape]:
        """The engine's inputs; `words` and `frames` may be numbers, names, None or expressions."""
        channels = self.latent[0]
        return {
            "words": (words,), "lanes": (frames, self.tiles, channels, 2), "channels": (frames, channels),
            "ranges": (frames, self.ranges_a_frame, 2),
        }  # fmt: skip


def bind_batch(
    batch: Batch, header: StreamHeader, spec: DecodeSpec, words: int | None = None
) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """A planned batch as the engine takes it: one run of bytes, and each input's array in it by name.

    The arrays (int32, `ranges` float32) are views of the bytes at multiples of 256: one copy brings them to the device,
    and a view's place in them is its tensor's address there. Read the engine's `damaged` with `check_damage`.

    header: of the stream that the batch was planned for.
    words: length of the input "words", the rest zeros, so that batches share one shape; None takes what there is.
    Raises ArtifactError for streams that the engine was not built for, UsageError for too few words.
    """
    found = DecodeSpec.of(header, spec.floats, spec.arch)
    if found != spec:
        raise ArtifactError(
            f"a stream for {found.name}, but the engine was built for {spec.name}",
            hint="latentseg build BUNDLE --target tensorrt --one-file --size HxW, with this stream's frame size",
        )
    lanes = (batch.lanes_a_frame, batch.ranges_a_frame)
    if lanes != (spec.tiles * spec.latent[0], spec.ranges_a_frame):
        raise UsageError(f"a batch of {lanes[0]} lanes and {lanes[1]} ranges a frame, planned with another header")
    length = max(1, batch.word_count) if words is None else words  # blank frames have no bytes, an input has some
    if length < max(1, batch.word_count):
        raise UsageError(f"{length} words for a batch of {batch.word_count}")
    wanted = spec.fed_shapes(length, batch.frames)
    starts = dict(zip(FED, (batch.payloads, batch.lanes, batch.channels, batch.ranges), strict=True))
    places, end = {}, 0
    for name, shape in wanted.items():
        places[name] = end
        end += -(-4 * int(np.prod(shape)) // ALIGNMENT) * ALIGNMENT
    data = np.zeros(end, np.uint8)
    views: dict[str, NDArray[Any]] = {}
    for name, shape in wanted.items():
        size = 4 * (batch.word_count if name == "words" else int(np.prod(shape)))
        data[places[name] : places[name] + size] = batch.data[starts[name] : starts[name] + size]
        view = data[places[name] : places[name] + 4 * int(np.prod(shape))]
        views[name] = view.view(FED[name]).reshape(shape)
    return data, views
