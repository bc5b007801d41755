"""What the fused runner decides without a device: buffers, graphs and their keys, and what fits a profile.

A batch is one copy to the device, a memset, the decoder, the engine and one copy back, and all of it is one CUDA graph.
A graph has its sizes built in, and payloads differ from batch to batch, so the copy moves a *bucket*: the payloads'
bytes rounded up to a step. Steps are a factor of 1.5 apart: for sizes spread evenly over a step's logarithm 23 % more
bytes are copied than needed, microseconds on a bus, and a stream whose batches differ tenfold in size captures six
graphs. The stale bytes behind the payloads are copied along and come to nothing: a lane whose bits end before its
symbols do is damaged, whatever lies behind them, and a sound one uses no bit that is not its own
(kernels/triton/context_decode.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...bitstream.header import StreamHeader
from ...kernels.gpu import shapes
from ...kernels.gpu.batch import Batch, Layout, batch_layout, batch_room

ALIGNMENT = 256  # of every tensor that TensorRT is given
FIRST_BUCKET = 4096
# Operations of a batch's graph that are ours: two copies, a memset and the decoder. The engine adds one at least.
OWN_OPERATIONS = 4


class GraphKey(NamedTuple):
    """What two batches that share a graph agree on, besides the size of their frames, which a runner has one of.

    bucket: payload bytes that are copied.
    """

    frames: int
    bucket: int


def aligned(size: int) -> int:
    """`size` rounded up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def bucket_of(size: int, most: int) -> int:
    """The smallest step that holds `size` payload bytes, or `most`, all that there is room for, if that is less."""
    bucket = FIRST_BUCKET
    while bucket < size:
        bucket += aligned(bucket // 2)
    return min(bucket, most)


@dataclass(frozen=True)
class BufferPlan:
    """Bytes of a slot's buffers, for batches of up to `frames` frames of one stream.

    room: the planned batch, pinned and on the device.  source: the engine's input.  history: the decoder's scratch.
    labels: where the labels start in the output buffer, behind the damage flags.  result: the whole output buffer,
    pinned and on the device.
    """

    header: StreamHeader
    frames: int
    size: tuple[int, int]
    room: int
    source: int
    history: int
    labels: int
    result: int

    @property
    def host_bytes(self) -> int:
        """Pinned memory of a slot."""
        return self.room + self.result

    def layout(self, frames: int) -> Layout:
        """Where the parts of a batch lie."""
        return batch_layout(self.header, frames)

    def key(self, batch: Batch) -> GraphKey:
        """The graph that a planned batch runs in."""
        return GraphKey(batch.frames, bucket_of(4 * batch.word_count, self.room - batch.payloads))

    def input_shape(self, frames: int) -> tuple[int, int, int, int]:
        """(N, C, h, w) of the engine's input."""
        return (frames, *self.header.latent_shape)

    def output_shape(self, frames: int) -> tuple[int, int, int]:
        """(N, H, W) of the labels before they are cropped."""
        return (frames, *self.size)

    def result_bytes(self, frames: int) -> int:
        """Bytes of the output buffer that a batch fills: the flags' room and its labels."""
        return self.labels + frames * self.size[0] * self.size[1]


def plan_buffers(header: StreamHeader, stride: int, frames: int, itemsize: int) -> BufferPlan:
    """Buffers for batches of up to `frames` frames of a stream.

    stride: source pixels a latent position.  itemsize: bytes of an element of the engine's input.
    Raises ArtifactError for a batch that is too large for the decoder.
    """
    layout = batch_layout(header, frames)
    _, height, width = header.latent_shape
    size = (height * stride, width * stride)
    labels = aligned(4 * frames)
    return BufferPlan(
        header=header,
        frames=frames,
        size=size,
        room=aligned(batch_room(header, frames)),
        source=frames * header.symbols * itemsize,
        history=4 * shapes.history_words(layout.lane_count, header.tile),
        labels=labels,
        result=aligned(labels + frames * size[0] * size[1]),
    )
