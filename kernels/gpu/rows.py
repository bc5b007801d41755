"""How float2int takes a batch of latents on a GPU: rows that share a range, and the passes that find the ranges.

A row is a frame's latent, or one channel of it where each has a range. Its smallest and largest value are found in
parts, one a program. A row of more parts than the compiled `quantize` reads is reduced again: its parts' values are a
row of their own, with the same smallest and largest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from ...bitstream.header import StreamHeader
from ...errors import ArtifactError
from . import shapes

_ALIGNMENT = 256
_MOST_BLOCKS = 65535  # of a CUDA grid's second axis


@dataclass(frozen=True)
class QuantizeRows:
    """A batch's rows. rows: of the whole batch, float32 (rows, size).

    parts: parts of a row after each pass of `minmax`; none with a fixed range or a codebook.
    """

    frames: int
    rows: int
    size: int
    parts: tuple[int, ...]

    @property
    def launches(self) -> int:
        """Kernels that a batch starts."""
        return len(self.parts) + 1

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the result of each pass, float32 (rows, parts, 2), starts in the scratch memory, in bytes."""
        return tuple(accumulate(map(self._pass_bytes, self.parts[:-1]), initial=0))[: len(self.parts)]

    @property
    def partial_bytes(self) -> int:
        """Bytes of the scratch memory."""
        return sum(map(self._pass_bytes, self.parts))

    def _pass_bytes(self, parts: int) -> int:
        return -(-8 * self.rows * parts // _ALIGNMENT) * _ALIGNMENT


def quantize_rows(header: StreamHeader, frames: int) -> QuantizeRows:
    """The rows of a batch of so many latents of a stream.

    Raises ArtifactError for rows that are longer than a grid.
    """
    mode = header.scaling.mode
    channels = header.latent_shape[0]
    rows, size = (frames * channels, header.symbols // channels) if mode == "channel" else (frames, header.symbols)
    if size > _MOST_BLOCKS * shapes.BLOCK:
        raise ArtifactError(
            f"{size} values share a range, expected at most {_MOST_BLOCKS * shapes.BLOCK}: a GPU's grid ends there",
            hint="--backend onnxruntime",
        )
    parts: list[int] = []
    left = size
    while mode in ("tensor", "channel") and (not parts or parts[-1] > shapes.PARTS):
        parts.append(-(-left // (shapes.BLOCK * shapes.TURNS)))
        left = 2 * parts[-1]
    return QuantizeRows(frames, rows, size, tuple(parts))
