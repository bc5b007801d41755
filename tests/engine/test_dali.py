"""The contract of the DALI sources: exact counts, order, shards, iterating again and stopping; CPU pipelines."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from _clip import clip
from PIL import Image

from latentseg.bitstream import Scaling, StreamHeader, Writer
from latentseg.engine import Engine
from latentseg.engine.bundle import Bundle
from latentseg.engine.sources import open_frames, open_source
from latentseg.engine.sources.stream import StreamSource
from latentseg.errors import BackendMissingError, InputError, UsageError
from latentseg.kernels import entropy

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed: pip install 'latentseg[dali]'")

from latentseg.engine.sources.dali import DaliImages, DaliPayloads, DaliVideo
from latentseg.engine.sources.dali.pipe import DaliError, Pipe, load_dali

MOST = 9
HEADER = StreamHeader(bytes(range(32)), (3, 7, 10), 4, Scaling("tensor"), (37, 53), (25, 1), tile=(4, 5))


def jpeg(picture: npt.NDArray[np.uint8], **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", **options)
    return out.getvalue()


def write_video(path: Path, count: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = 37, 53, "yuvj420p"
        for frame in clip(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_stream(path: Path, count: int) -> Path:
    random = np.random.default_rng(count)
    with path.open("wb") as file:
        writer = Writer(file, HEADER)
        for index in range(count):
            latent = random.normal(size=HEADER.latent_shape).astype(np.float32)
            writer.write(entropy.encode_latent(latent, HEADER), index * 40_000)
    return path


class Kind:
    """How to open one kind of source on `count` items, and what each item has to be, found without DALI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.made: dict[int, Any] = {}

    def spec(self, count: int) -> Any:
        if count not in self.made:
            self.made[count] = self.make(count)
        return self.made[count]

    make: Callable[[int], Any]
    open: Callable[..., Any]
    truth: Callable[[int], list[Any]]


class Videos(Kind):
    def make(self, count: int) -> Path:
        return write_video(self.folder / f"{count}.avi", count)

    def open(self, count: int, batch: int, **options: Any) -> DaliVideo:
        return DaliVideo(self.spec(count), batch, threads=1, **options)

    def truth(self, count: int) -> list[Any]:
        with open_frames(self.spec(count)) as source:
            return [(f.index, f.timestamp_us, f.rgb.tobytes()) for f in source]


class Images(Kind):
    def make(self, count: int) -> list[bytes]:
        return [jpeg(frame) for frame in clip(count)]

    def open(self, count: int, batch: int, **options: Any) -> DaliImages:
        return DaliImages(self.spec(count), batch, threads=1, **options)

    def truth(self, count: int) -> list[Any]:
        pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in self.spec(count)]
        return [(i, i * 40_000, picture.tobytes()) for i, picture in enumerate(pictures)]


class Payloads(Kind):
    def make(self, count: int) -> Path:
        return write_stream(self.folder / f"{count}.lseg", count)

    def open(self, count: int, batch: int, **options: Any) -> DaliPayloads:
        return DaliPayloads(self.spec(count), batch, **options)

    def truth(self, count: int) -> list[Any]:
        with StreamSource.open(self.spec(count)) as source:
            return [(f.index, f.timestamp_us, f.payload) for f in source]


@pytest.fixture(scope="module", params=[Videos, Images, Payloads], ids=["video", "images", "payloads"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    made: Kind = request.param(tmp_path_factory.mktemp("dali") / "x")
    return made


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(t.name.startswith("latentseg-") for t in threading.enumerate()):
        time.sleep(0.01)
    assert [t.name for t in threading.enumerate() if t.name.startswith("latentseg-")] == []


def items(batch: Any) -> list[Any]:
    """A batch's items, as the truths are."""
    if hasattr(batch, "frames"):
        payloads = batch.plan.payloads
        joined = b"".join(frame.payload for frame in batch.frames)
        assert batch.host().tobytes() == batch.plan.data.tobytes()
        assert batch.host()[payloads : payloads + len(joined)].tobytes() == joined
        return [(f.index, f.timestamp_us, f.payload) for f in batch.frames]
    frames = batch.host()
    assert frames.dtype == np.uint8
    assert frames.flags.c_contiguous
    assert frames.shape == (len(batch), 37, 53, 3)
    return list(zip(batch.indices.tolist(), batch.timestamps_us.tolist(), (f.tobytes() for f in frames), strict=True))


@pytest.mark.parametrize("count", range(1, MOST + 1))
def test_every_item_once_at_every_batch(kind: Kind, count: int) -> None:
    truth = kind.truth(count)
    assert len(truth) == count
    for batch in range(1, 6):
        with kind.open(count, batch) as source:
            found = list(source.batches())
            assert [len(b) for b in found] == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
            assert [item for b in found for item in items(b)] == truth
            assert source.damages == []


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 11])
def test_shards_take_each_item_once(kind: Kind, shards: int) -> None:
    if isinstance(kind, Payloads):
        files = [kind.spec(count) for count in (3, 1, 4, 2)]
        parts = [DaliPayloads(files, 3, shard=shard, shards=shards) for shard in range(shards)]
        truth = [item for count in (3, 1, 4, 2) for item in kind.truth(count)]
    else:
        parts = [kind.open(MOST, 2, shard=shard, shards=shards) for shard in range(shards)]
        truth = kind.truth(MOST)
        assert sum(part.length for part in parts) == MOST
    found = []
    for part in parts:
        with part:
            found.append([item for batch in part.batches() for item in items(batch)])
            if not isinstance(kind, Payloads):
                assert len(found[-1]) == part.length
    assert sorted(item for part in found for item in part) == sorted(truth)
    assert max(map(len, found)) > 0


def test_one_by_one(kind: Kind) -> None:
    with kind.open(5, 2) as source:
        if isinstance(kind, Payloads):
            found = [(f.index, f.timestamp_us, f.payload) for f in source]
        else:
            found = [(f.index, f.timestamp_us, f.rgb.tobytes()) for f in source]
            assert (source.size, source.length) == ((37, 53), 5)
    assert found == kind.truth(5)


def test_iterating_again(kind: Kind) -> None:
    with kind.open(7, 3) as source:
        for taken in (3, 1, 3, 0, 2, 3):  # of three batches: whole and broken off, in turn
            iterator = source.batches()
            found = [item for _ in range(taken) for item in items(next(iterator))]
            assert found == kind.truth(7)[: taken * 3]
            if taken == 3:
                assert next(iterator, None) is None


def test_an_older_iteration_and_a_closed_source_say_so(kind: Kind) -> None:
    with kind.open(7, 2) as source:
        older = source.batches()
        next(older)
        assert len(list(source.batches())) == 4
        with pytest.raises(UsageError, match="another iteration begun"):
            next(older)
        last = source.batches()
        next(last)
    source.close()
    with pytest.raises(UsageError, match="the source was closed"):
        next(last)


def test_batches_outlive_the_source(kind: Kind) -> None:
    with kind.open(MOST, 2) as source:
        found = list(source.batches())
    del source
    assert [item for batch in found for item in items(batch)] == kind.truth(MOST)


def test_numbers_out_of_range(kind: Kind) -> None:
    for options, says in (
        ({"batch": 0}, "batch is 0"),
        ({"batch": 1, "depth": 0}, "depth is 0"),
        ({"batch": 1, "shards": 0}, "shards is 0"),
        ({"batch": 1, "shard": 2, "shards": 2}, "shard is 2, expected 0 to 1"),
        ({"batch": 1, "device": -1}, "device is -1"),
    ):
        with pytest.raises(UsageError, match=says):
            kind.open(2, **options)
    with kind.open(2, 1) as source, pytest.raises(UsageError, match="a CUDA stream with batches on the CPU"):
        next(source.batches(stream=1))


def test_no_gpu_is_said_and_not_replaced(kind: Kind) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(BackendMissingError, match="no CUDA driver for GPU 0") as caught:
        kind.open(2, 1, device=0)
    assert caught.value.hint


def test_an_error_of_the_feed_comes_behind_what_was_good() -> None:
    def feed() -> Iterator[Any]:
        for number in range(4):
            yield number, [np.full(3, number, np.uint8)]
        raise InputError("the end is not as it should be")

    pipe: Pipe[int] = Pipe(lambda fed: [fed], 1, None, 1, 3)
    results = pipe.run(feed())
    found = [(number, outputs[0].as_array().tolist()) for number, outputs in itertools.islice(results, 4)]
    assert found == [(n, [[n] * 3]) for n in range(4)]
    with pytest.raises(InputError, match="not as it should be"):
        next(results)


def test_a_failing_graph_gives_back_what_was_under_way() -> None:
    def define(fed: Any) -> list[Any]:
        return [load_dali().fn.decoders.image(fed, device="cpu")]

    good, bad = np.frombuffer(jpeg(clip(1)[0]), np.uint8), np.zeros(9, np.uint8)
    pipe: Pipe[int] = Pipe(define, 1, None, 1, 2)
    results = pipe.run((n, [array]) for n, array in enumerate([good, good, bad, good, good]))
    assert [number for number, _ in itertools.islice(results, 2)] == [0, 1]
    with pytest.raises(DaliError) as caught:
        next(results)
    assert caught.value.items[0] == 2
    assert "\n" not in str(caught.value)
    assert [n for n, _ in pipe.run([(7, [good])])] == [7]


@pytest.mark.parametrize("name", ["film.avi", "film.mjpeg", "one.jpg", "folder"])
def test_open_source_and_engine(name: str, tmp_path: Path, tiny_bundle: Bundle) -> None:
    path = tmp_path / name
    if name.startswith("film"):
        write_video(path, 5)
    else:
        path = path if name == "one.jpg" else path / "1.jpg"
        path.parent.mkdir(exist_ok=True)
        for n, picture in enumerate(clip(12 if name == "folder" else 1)):
            path.with_stem(str(n + 1) if name == "folder" else "one").write_bytes(jpeg(picture))
        path = path.parent if name == "folder" else path
    plain = "video" if name.startswith("film") else "images"
    with Engine(tiny_bundle) as engine:
        for kind, out in ((plain, "a.lseg"), ("dali", "b.lseg")):
            engine.encode(path, tmp_path / out, kind=kind)
        one, other = ([r.labels.tobytes() for r in engine.segment(path, kind=k)] for k in (plain, "dali"))
    assert (tmp_path / "a.lseg").read_bytes() == (tmp_path / "b.lseg").read_bytes()
    assert one == other


def test_kinds_that_dali_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dali cannot be read from stdin"):
        open_source("-", "dali")
    with pytest.raises(UsageError, match="only be read as video"):
        open_source("rtsp://nobody/x", "dali-gpu")
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "none.avi", "dali")


def test_without_dali() -> None:
    code = """
import sys
sys.modules["nvidia.dali"] = None
from latentseg.engine.sources.dali import DaliImages
from latentseg.errors import BackendMissingError
try:
    DaliImages([b""])
except BackendMissingError as error:
    print(error, "|", error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == (
        "this needs the package 'nvidia-dali-cuda130', which is not installed | pip install 'latentseg[dali]'"
    ), done.stderr
