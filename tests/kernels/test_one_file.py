"""What a one-file engine is fed: a planned batch as four aligned arrays in one run of bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from _fake_plugins import HEADER, payloads_of

from latentseg.bitstream import Scaling
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.kernels import entropy
from latentseg.kernels.gpu.batch import plan_batch
from latentseg.kernels.gpu.one_file import DecodeSpec, bind_batch


def test_a_batch_is_bound_at_aligned_places_of_one_run() -> None:
    spec = DecodeSpec.of(HEADER, "float32", 90)
    payloads = payloads_of(3)
    batch = plan_batch(payloads, HEADER)
    data, views = bind_batch(batch, HEADER, spec)
    assert list(views) == ["words", "lanes", "channels", "ranges"]
    taken = np.zeros(len(data), bool)
    for name, view in views.items():
        start = view.ctypes.data - data.ctypes.data
        assert start % 256 == 0
        assert not taken[start : start + view.nbytes].any()
        taken[start : start + view.nbytes] = True
        assert view.dtype == (np.float32 if name == "ranges" else np.int32)
    assert views["words"].tobytes()[: sum(map(len, payloads))] == b"".join(payloads)
    assert views["lanes"].shape == (3, 6, 3, 2)
    parts = (batch.lanes, batch.payloads), (batch.channels, batch.lanes), (batch.ranges, batch.channels)
    for name, (start, end) in zip(("lanes", "channels", "ranges"), parts, strict=True):
        assert batch.data[start:end].tobytes().startswith(views[name].tobytes())
    # A longer "words" changes nothing but its own end.
    _, longer = bind_batch(batch, HEADER, spec, words=batch.word_count + 70)
    assert longer["words"].shape == (batch.word_count + 70,)
    assert np.array_equal(longer["words"][: batch.word_count], views["words"])
    assert not longer["words"][batch.word_count :].any()
    assert all(np.array_equal(longer[name], views[name]) for name in ("lanes", "channels", "ranges"))
    with pytest.raises(UsageError, match=f"{batch.word_count - 1} words for a batch of {batch.word_count}"):
        bind_batch(batch, HEADER, spec, words=batch.word_count - 1)


@pytest.mark.parametrize(
    "change",
    [{"latent_shape": (3, 11, 9)}, {"scaling": Scaling("tensor")}, {"bits": 7}, {"tile": (4, 9)}],
)
def test_streams_of_another_engine_are_refused(change: dict[str, Any]) -> None:
    """A latent of 11 rows has as many lanes as one of 10: the counts alone would let it through."""
    header = replace(HEADER, **change)
    spec = DecodeSpec.of(HEADER, "float32", 90)
    q = np.zeros(header.latent_shape, np.uint8)
    lo = np.zeros(3 if header.scaling.mode == "channel" else 1, np.float32)
    batch = plan_batch([entropy.encode_symbols(q, header, *(lo, lo + 1) if len(lo) == 3 else (0.0, 1.0))], header)
    if change == {"latent_shape": (3, 11, 9)}:
        assert batch.lanes_a_frame == spec.tiles * 3
    with pytest.raises(ArtifactError, match=f"a stream for ContextDecode_.*, but the engine was built for {spec.name}"):
        bind_batch(batch, header, spec)


def test_a_codebook_is_refused() -> None:
    header = replace(HEADER, scaling=Scaling("codebook", centres=tuple(range(256))))
    with pytest.raises(ArtifactError, match="a stream with a codebook, expected one of ranges") as caught:
        DecodeSpec.of(header, "float32", 90)
    assert "--one-file" in caught.value.hint


def test_a_header_of_another_batch_is_refused() -> None:
    batch = plan_batch(payloads_of(2), HEADER)
    other = replace(HEADER, latent_shape=(3, 17, 9))
    with pytest.raises(UsageError, match="a batch of 18 lanes and 3 ranges a frame, planned with another header"):
        bind_batch(batch, other, DecodeSpec.of(other, "float32", 90))


def test_a_batch_of_blank_frames_has_one_word() -> None:
    refused: dict[int, InputError] = {}
    batch = plan_batch([b"damaged"] * 2, HEADER, refused=refused)
    assert (sorted(refused), batch.word_count) == ([0, 1], 0)
    data, views = bind_batch(batch, HEADER, DecodeSpec.of(HEADER, "float16", 86))
    assert [view.shape for view in views.values()] == [(1,), (2, 6, 3, 2), (2, 3), (2, 3, 2)]
    assert not data.any()
