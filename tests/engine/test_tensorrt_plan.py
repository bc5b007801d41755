"""What the fused runner decides on the host: buckets, keys, buffers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.engine.tensorrt.plan import FIRST_BUCKET, bucket_of, plan_buffers, plan_sender
from latentseg.errors import ArtifactError
from latentseg.kernels import entropy
from latentseg.kernels.gpu.batch import plan_batch


def header(shape: tuple[int, int, int], tile: tuple[int, int] = (14, 32)) -> StreamHeader:
    return StreamHeader(bytes(32), shape, 8, Scaling("fixed", 0.0, 255.0), coder="context", tile=tile)


def test_buckets_hold_what_they_are_for_and_are_a_factor_apart() -> None:
    sizes = np.unique(np.geomspace(1, 1e8, 3000).astype(int)).tolist()
    buckets = [bucket_of(size, 10**9) for size in sizes]
    for size, bucket in zip(sizes, buckets, strict=True):
        assert size <= bucket
        assert bucket % 256 == 0
        assert bucket == FIRST_BUCKET or bucket <= 1.51 * size + 256
    steps = sorted(set(buckets))
    assert len(steps) <= 2 + math.log(1e8 / FIRST_BUCKET, 1.5)
    # One bucket more than a size, and each bucket is its own.
    assert [bucket_of(step, 10**9) for step in steps] == steps
    assert bucket_of(5000, 5100) == 5100
    # Ten times the size: six buckets on.
    assert 5 <= steps.index(bucket_of(10**6, 10**9)) - steps.index(bucket_of(10**5, 10**9)) <= 6


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 11), (5, 33, 65)])
@pytest.mark.parametrize("frames", [1, 3])
def test_buffers_hold_the_largest_batch(shape: tuple[int, int, int], frames: int) -> None:
    stream = header(shape, (1, 16))
    plan = plan_buffers(stream, 8, frames, 2)
    rng = np.random.default_rng(0)
    noise = [entropy.encode_symbols(rng.integers(0, 256, shape, np.uint8), stream) for _ in range(frames)]
    batch = plan_batch(noise, stream, into=np.empty(plan.room, np.uint8))
    key = plan.key(batch)
    assert key.frames == frames
    assert 4 * batch.word_count <= key.bucket <= plan.room - batch.payloads
    assert key.bucket % 4 == 0
    assert plan.source == frames * math.prod(shape) * 2
    assert plan.input_shape(frames) == (frames, *shape)
    assert plan.output_shape(frames) == (frames, 8 * shape[1], 8 * shape[2])
    assert plan.labels % 256 == 0
    assert plan.labels >= 4 * frames
    assert plan.labels + math.prod(plan.output_shape(frames)) == plan.result_bytes(frames) <= plan.result
    assert plan.host_bytes == plan.room + plan.result


def test_batches_of_like_payloads_share_a_graph() -> None:
    stream = header((3, 90, 120))
    plan = plan_buffers(stream, 8, 4, 4)
    rng = np.random.default_rng(0)
    keys = set()
    for _ in range(12):
        q = np.clip(np.rint(rng.normal(100, 3, (4, 3, 90, 120))), 0, 255).astype(np.uint8)
        keys.add(plan.key(plan_batch([entropy.encode_symbols(frame, stream) for frame in q], stream)))
    assert len(keys) == 1


def test_a_batch_that_the_decoder_cannot_take_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(ArtifactError, match="a batch of 33 frames, 2214592512 symbols"):
        plan_buffers(header((1, 8192, 8192)), 8, 33, 2)


@pytest.mark.parametrize("mode", ["fixed", "tensor", "channel"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 8, 11), (32, 135, 240)])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_senders_buffers_hold_the_largest_batch(mode: str, shape: tuple[int, int, int], frames: int) -> None:
    scaling = Scaling("fixed", 0.0, 255.0) if mode == "fixed" else Scaling(mode)  # type: ignore[arg-type]
    plan = plan_sender(StreamHeader(bytes(32), shape, 8, scaling), 8, frames)
    assert plan.size == (8 * shape[1], 8 * shape[2])
    assert plan.input_shape(frames) == (frames, *plan.size, 3)
    assert plan.output_shape(frames) == (frames, *shape)
    assert math.prod(plan.input_shape(frames)) == plan.room_bytes(frames) <= plan.room
    assert plan.latent == 4 * math.prod(plan.output_shape(frames))
    assert plan.partial == plan.rows(frames).partial_bytes
    # Flags, ranges and symbols lie apart, each where TensorRT's and the kernels' alignment wants it.
    rows = frames * (shape[0] if mode == "channel" else 1)
    assert plan.rows(frames).rows == rows
    assert 4 * rows <= plan.ranges <= plan.ranges + 8 * rows <= plan.symbols
    assert plan.ranges % 256 == plan.symbols % 256 == 0
    assert plan.symbols + frames * math.prod(shape) == plan.result_bytes(frames) <= plan.result
    assert plan.host_bytes == plan.room + plan.result
    assert plan.key(frames) != plan.key(frames + 1)
    assert plan.operations(frames) == {"fixed": 4, "tensor": 5, "channel": 5}[mode] + (
        mode == "tensor" and shape[0] == 32
    )
