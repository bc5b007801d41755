"""Payloads through DALI on the CPU, against the Reader and plan_batch; damage in files and in payloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latentseg.bitstream import Reader, Scaling, StreamHeader, Writer
from latentseg.errors import ArtifactError, InputError
from latentseg.kernels import entropy
from latentseg.kernels.gpu.batch import plan_batch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'latentseg[dali]'")

from latentseg.engine.sources.dali import DaliPayloads

HEADER = StreamHeader(bytes(range(32)), (3, 7, 10), 4, Scaling("channel"), (37, 53), (25, 1), tile=(4, 5))


def payloads(count: int, header: StreamHeader = HEADER, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    latents = random.normal(size=(count, *header.latent_shape)).astype(np.float32)
    return [entropy.encode_latent(latent, header) for latent in latents]


def write(path: Path, coded: Sequence[bytes], header: StreamHeader = HEADER) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, header)
        for index, payload in enumerate(coded):
            writer.write(payload, index * 40_000)
    return path


def test_a_batch_is_what_the_kernel_takes(tmp_path: Path) -> None:
    coded = payloads(5)
    with DaliPayloads(write(tmp_path / "x.lseg", coded), 2) as source:
        assert (source.header, source.size, source.frame_rate) == (HEADER, (37, 53), (25, 1))
        found = list(source.batches())
    for batch, expected in zip(found, (coded[:2], coded[2:4], coded[4:]), strict=True):
        plan = plan_batch(expected, HEADER)
        np.testing.assert_array_equal(batch.host(), plan.data)
        assert batch.host().dtype == np.uint8
        assert replace(batch.plan, data=plan.data) == replace(plan, data=plan.data)
        assert batch.address == batch.host().ctypes.data


def test_batches_run_across_files(tmp_path: Path) -> None:
    counts = (3, 1, 4)
    files = [write(tmp_path / f"{n}.lseg", payloads(c, seed=n)) for n, c in enumerate(counts)]
    with DaliPayloads(files, 3) as source:
        found = list(source.batches())
    assert [len(batch) for batch in found] == [3, 3, 2]
    assert np.concatenate([batch.files for batch in found]).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [f.index for batch in found for f in batch.frames] == [0, 1, 2, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_reported_as_the_reader_does(damage: str, several: bool, tmp_path: Path) -> None:
    coded = payloads(7)
    path = write(tmp_path / "x.lseg", coded)
    data = bytearray(path.read_bytes())
    at = data.index(coded[3])
    if damage == "flipped":
        data[at + len(coded[3]) // 2] ^= 1
    elif damage == "cut":
        del data[at + 5 :]
    else:
        del data[at - 28 : at + len(coded[3])]
    path.write_bytes(data)
    with path.open("rb") as file:
        reader = Reader(file)
        expected = list(reader)
    assert reader.damages
    files = [write(tmp_path / "whole.lseg", coded), path] if several else path
    with DaliPayloads(files, 2) as source:
        for _ in range(2):
            found = [frame for batch in source.batches() for frame in batch.frames]
            assert found[7 * several :] == expected
            prefix = f"{path}: " if several else ""
            assert source.damages == [replace(d, reason=prefix + d.reason) for d in reader.damages]
            assert source.lost == reader.lost


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_payloads_that_do_not_decode_are_passed_over(batch: int, tmp_path: Path) -> None:
    # Their CRC fits: they were damaged before they were written.
    coded = payloads(7)
    bad = {1, 2, 6}
    path = write(tmp_path / "x.lseg", [b"\xff" * 9 if n in bad else p for n, p in enumerate(coded)])
    with DaliPayloads(path, batch) as source:
        found = list(source.batches())
        assert [f.payload for b in found for f in b.frames] == [p for n, p in enumerate(coded) if n not in bad]
        assert all(len(b) == b.plan.frames for b in found)
        assert [(d.frame_index, d.lost, d.offset) for d in source.damages] == [(n, 1, -1) for n in sorted(bad)]
        assert all(f"frame {d.frame_index} does not decode" in d.reason for d in source.damages)


def test_streams_without_a_frame(tmp_path: Path) -> None:
    empty, whole = write(tmp_path / "empty.lseg", []), write(tmp_path / "whole.lseg", payloads(2))
    with DaliPayloads(empty) as source, pytest.raises(InputError, match="no readable frame"):
        list(source.batches())
    with DaliPayloads([empty, whole], 3) as source:
        assert [len(batch) for batch in source.batches()] == [2]
        assert [d.lost for d in source.damages] == [0]
        assert "empty.lseg" in source.damages[0].reason


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.lseg", payloads(1))
    (tmp_path / "text.lseg").write_bytes(b"hello " * 50)
    other = replace(HEADER, latent_shape=(3, 7, 11))
    wide = write(tmp_path / "wide.lseg", payloads(1, other), other)
    slow = replace(HEADER, frame_rate=(5, 1))
    for source, says in (
        ([], "an empty sequence"),
        (tmp_path / "none.lseg", "none.lseg"),
        (tmp_path / "text.lseg", "not an .lseg stream"),
        ([whole, wide], "wide.lseg is of another codec, size or tile than"),
    ):
        with pytest.raises(InputError, match=says):
            DaliPayloads(source)
    with DaliPayloads([whole, write(tmp_path / "slow.lseg", payloads(1), slow)]) as joined:
        assert [len(batch) for batch in joined.batches()] == [2]
    huffman = replace(HEADER, coder="huffman-frame", tile=(0, 0), lane_symbols=4096)
    with pytest.raises(ArtifactError, match=r"h\.lseg: a stream of coder huffman-frame, expected context"):
        DaliPayloads(write(tmp_path / "h.lseg", payloads(1, huffman), huffman))
    refers = replace(HEADER, coder="inter")
    with pytest.raises(ArtifactError, match=r"i\.lseg: a stream of coder inter, expected context") as caught:
        DaliPayloads(write(tmp_path / "i.lseg", payloads(1, refers), refers))
    assert "--key-interval 1" in caught.value.hint
