"""What the fused runners decide without a device: buffers, graphs and their keys.

A batch that is received is one copy to the device, a memset, the decoder, the engine and one copy back, all of it one
CUDA graph. A graph has its sizes built in, and payloads differ from batch to batch, so the copy moves a *bucket*: the
payloads' bytes rounded up to a step. Steps are a factor of 1.5 apart: for sizes spread evenly over a step's logarithm
23 % more bytes are copied than needed, microseconds on a bus, and a stream whose batches differ tenfold in size
captures six graphs. The stale bytes behind the payloads are copied along and come to nothing: a lane whose bits end
before its symbols do is damaged, whatever lies behind them, and a sound one uses no bit that is not its own
(kernels/triton/context_decode.py).

A batch that is sent is one copy to the device, a memset, the engine, float2int and one copy back. Frames have one size,
and so its graph follows from their number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...bitstream.header import StreamHeader
from ...kernels.gpu import shapes
from ...kernels.gpu.batch import Batch, Layout, batch_layout, batch_room
from ...kernels.gpu.rows import QuantizeRows, quantize_rows

ALIGNMENT = 256  # of every tensor that TensorRT is given
FIRST_BUCKET = 4096
# Operations of a batch's graph that are ours, besides kernels: two copies and a memset. The engine adds one at least.
COPIES = 3


class GraphKey(NamedTuple):
    """What two batches that share a graph agree on, besides the size of their frames, which a runner has one of.

    bucket: payload bytes that are copied; 0 where frames are sent.
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

    def operations(self, frames: int) -> int:
        """Operations of a batch's graph that are ours."""
        return COPIES + 1

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


@dataclass(frozen=True)
class SenderPlan:
    """Bytes of a slot's buffers, for batches of up to `frames` frames that become one stream.

    size: (H, W) of the frames, padded to the stride.  room: a batch's frames, pinned and on the device.
    latent: the engine's output.  partial: float2int's scratch.  ranges, symbols: where they start in the output buffer,
    behind the flags of rows that are not finite.  result: the whole output buffer, pinned and on the device.
    """

    header: StreamHeader
    frames: int
    size: tuple[int, int]
    room: int
    latent: int
    partial: int
    ranges: int
    symbols: int
    result: int

    @property
    def host_bytes(self) -> int:
        """Pinned memory of a slot."""
        return self.room + self.result

    def rows(self, frames: int) -> QuantizeRows:
        """How float2int takes a batch."""
        return quantize_rows(self.header, frames)

    def key(self, frames: int) -> GraphKey:
        """The graph that a batch runs in."""
        return GraphKey(frames, 0)

    def input_shape(self, frames: int) -> tuple[int, int, int, int]:
        """(N, H, W, 3) of the engine's input."""
        return (frames, *self.size, 3)

    def output_shape(self, frames: int) -> tuple[int, int, int, int]:
        """(N, C, h, w) of the engine's output."""
        return (frames, *self.header.latent_shape)

    def operations(self, frames: int) -> int:
        """Operations of a batch's graph that are ours."""
        return COPIES + self.rows(frames).launches

    def room_bytes(self, frames: int) -> int:
        """Bytes of a batch's frames."""
        return frames * self.size[0] * self.size[1] * 3

    def result_bytes(self, frames: int) -> int:
        """Bytes of the output buffer that a batch fills: the room of flags and ranges, and its symbols."""
        return self.symbols + frames * self.header.symbols


def plan_sender(header: StreamHeader, stride: int, frames: int) -> SenderPlan:
    """Buffers for batches of up to `frames` frames that become a stream.

    stride: source pixels a latent position.  Raises ArtifactError for a stream that the kernels cannot quantise.
    """
    rows = quantize_rows(header, frames)
    _, height, width = header.latent_shape
    size = (height * stride, width * stride)
    ranges = aligned(4 * rows.rows)
    symbols = ranges + aligned(8 * rows.rows)
    return SenderPlan(
        header=header,
        frames=frames,
        size=size,
        room=aligned(frames * size[0] * size[1] * 3),
        latent=4 * frames * header.symbols,
        partial=rows.partial_bytes,
        ranges=ranges,
        symbols=symbols,
        result=aligned(symbols + frames * header.symbols),
    )
