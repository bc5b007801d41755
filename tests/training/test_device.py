"""Where trainings run: names of devices, batches made ahead, bfloat16, and every tensor of a step on one device.

There is no GPU here, so steps are taken on torch's "meta" device, whose tensors have no values, in a mode in which
every operation refuses tensors of two devices, as a GPU's do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny_classifiers import CONFIG, centred, image_set, tiny_networks  # noqa: F401 - the last is a fixture
from _tiny_runs import CODEC, NARROW, SEGMENTER, TINY, frames, labels, loop, tiny_codec, weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from latentseg.cli import main
from latentseg.errors import UsageError
from latentseg.training import soft_to_hard
from latentseg.training.device import ahead, check_device, native_bfloat16, worker_count
from latentseg.training.loop import Run
from latentseg.training.train_classifier import train_classifier
from latentseg.training.train_codec import CodecConfig, train_codec
from latentseg.training.train_joint import JointConfig, train_joint
from latentseg.training.train_joint_classifier import JointClassifierConfig, train_joint_classifier
from latentseg.training.train_segmenter import SegmenterConfig, train_segmenter

Training = Callable[..., Any]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher")
    args = ("compact-rgb", frames(3), labels(3), 2, out, SEGMENTER, loop(2))
    return train_segmenter(*args, options=NARROW, progress=False)


def segmenter(out: Path, network: str, config: SegmenterConfig = SEGMENTER, **options: Any) -> Any:
    config_loop = options.pop("loop")
    args = (network, frames(3), labels(3), 2, out, config, config_loop)
    return train_segmenter(*args, options=dict(NARROW), progress=False, **options)


# Every kind of training and of loss, as a function of where it writes, its loop, a codec and a teacher.
TRAININGS: dict[str, Training] = {
    "codec": lambda out, loop, codec, teacher: train_codec(
        "compact-codec", frames(3), out, CodecConfig(0.5, patch=32, batch=4, pca_patches=400, step_range=(0.5, 2.0)),
        loop, options=TINY, progress=False,
    ),
    "codec without a rate": lambda out, loop, codec, teacher: train_codec(
        "kakaiya-codec-d2", frames(3, 64, 64), out, CodecConfig(patch=64, batch=2), loop, progress=False
    ),
    "codec with centres": lambda out, loop, codec, teacher: train_codec(
        "torfason-codec-c8", frames(3, 64, 64), out, CodecConfig(0.5, patch=32, batch=2), loop,
        options={"width": 48}, progress=False,
    ),
    "segmenter": lambda out, loop, codec, teacher: segmenter(out, "compact-rgb", loop=loop),
    "segmenter of latents": lambda out, loop, codec, teacher: segmenter(
        out, "compact-unpacked", SegmenterConfig(size=(24, 32), batch=4, step_range=(0.5, 2.0)), codec=codec, loop=loop
    ),
    "segmenter of decoded frames": lambda out, loop, codec, teacher: segmenter(
        out, "compact-rgb", decoded_by=codec, loop=loop
    ),
    "joint": lambda out, loop, codec, teacher: train_joint(
        "compact-unpacked", frames(3), labels(3), 2, out, SEGMENTER, CODEC, JointConfig(hint_steps=1, ramp=2), loop,
        codec=codec, teacher=teacher, options={**NARROW, "root": 2}, progress=False,
    ),
    "classifier": lambda out, loop, codec, teacher: train_classifier(
        "tiny-latent", image_set(), out, CONFIG, loop, codec=codec, progress=False
    ),
    "joint classifier": lambda out, loop, codec, teacher: train_joint_classifier(
        "tiny-latent", image_set(), out, CONFIG, JointClassifierConfig(0.5), loop,
        codec=centred(out.with_suffix(".safetensors")), progress=False,
    ),
}  # fmt: skip


# Pillow, which makes JPEGs in the threads, needs values.
JPEGS: Training = lambda out, loop, codec, teacher: segmenter(  # noqa: E731
    out, "compact-rgb", SegmenterConfig(size=(24, 32), batch=4, jpeg_quality=(5, 50)), loop=loop
)


class DoneError(Exception):
    pass


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings whose tensors have no values: numbers read from them are 0.5, and they end behind the last step."""
    train = Run.train

    def taken(self: Run, *args: Any, **kwargs: Any) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            train(self, *args, **kwargs)
        assert {value.device.type for value in self.module.state_dict().values()} == {"meta"}
        assert self.step == 3
        raise DoneError

    monkeypatch.setattr(Run, "train", taken)
    monkeypatch.setattr(Run, "save_state", lambda self: None)
    monkeypatch.setattr(Tensor, "item", lambda self: 0.5)
    monkeypatch.setattr(Tensor, "__float__", lambda self: 0.5)
    monkeypatch.setattr(soft_to_hard, "coded_latent", lambda codec, z, *rest: (None, b"", int(z.device.type == "cpu")))


@pytest.mark.usefixtures("no_values", "tiny_networks")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_is_taken_on_one_device(tmp_path: Path, codec: Path, teacher: Path, name: str) -> None:
    with pytest.raises(DoneError):
        TRAININGS[name](tmp_path / "r", loop(3, device="meta", workers=0), codec, teacher)


@pytest.mark.usefixtures("no_values")
@pytest.mark.parametrize("name", ["codec", "segmenter of latents", "joint"])
def test_a_batch_left_behind_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Path, teacher: Path, name: str
) -> None:
    monkeypatch.setattr(Run, "place", lambda self, *tensors: list(tensors))
    with pytest.raises(RuntimeError, match="device"):
        TRAININGS[name](tmp_path / "r", loop(3, device="meta", workers=0), codec, teacher)


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", [*TRAININGS, "segmenter of JPEGs"])
def test_batches_made_ahead_are_the_same(tmp_path: Path, codec: Path, teacher: Path, name: str) -> None:
    for workers in (0, 3):
        training = TRAININGS.get(name, JPEGS)
        training(tmp_path / str(workers), loop(3, workers=workers), codec, teacher)
    files = [sorted((tmp_path / n).rglob("model.safetensors")) for n in "03"]
    assert len(files[0]) == len(files[1]) == (2 if name.startswith("joint") else 1)
    for one, other in zip(*files, strict=True):
        assert weights(one).keys() == weights(other).keys()
        assert all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter:UserWarning")
def test_a_run_may_be_resumed_elsewhere(tmp_path: Path) -> None:
    """Neither threads, workers nor device are settings: they decide how fast a run is, not what it learns."""
    run = Run(tmp_path, "one", {}, torch.nn.Linear(2, 2), loop(2, workers=2), {})
    run.save_state()
    moved = Run(tmp_path, "one", {}, torch.nn.Linear(2, 2), loop(2, threads=2, device="meta"), {}, resume=True)
    assert {value.device.type for value in moved.average.values()} == {"meta"}


def test_ahead_keeps_the_order_and_works_in_threads() -> None:
    together = threading.Barrier(3, timeout=10)

    def make(step: int) -> int:
        together.wait()  # three are made at a time, or this breaks
        time.sleep(0.01 * (3 - step % 3))
        return step

    assert list(ahead(make, 2, 11, 3)) == list(range(2, 11))
    assert list(ahead(str, 3, 3, 2)) == list(ahead(str, 4, 3, 0)) == []
    assert list(ahead(str, 0, 2, 5)) == list(ahead(str, 0, 2, 0)) == ["0", "1"]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_what_making_a_batch_raises_is_raised_at_its_step(workers: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise UsageError("no such picture")
        return step

    batches = ahead(make, 0, 8, workers)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UsageError, match="no such picture"):
        next(batches)


def test_ahead_makes_no_more_than_it_may_and_stops_when_left() -> None:
    made: list[int] = []
    batches = ahead(lambda step: made.append(step) or step, 0, 1000, 2)  # type: ignore[func-returns-value]
    assert next(batches) == 0
    batches.close()
    assert set(made) <= {0, 1, 2}
    lazy = ahead(lambda step: made.append(step), 5000, 6000, 0)
    assert 5000 not in made
    next(lazy)
    assert 5000 in made
    assert 5001 not in made


def test_how_many_workers() -> None:
    assert worker_count(None, torch.device("cpu")) == 0
    assert 1 <= worker_count(None, torch.device("cuda", 0)) <= 8
    assert (worker_count(5, torch.device("cpu")), worker_count(0, torch.device("cuda"))) == (5, 0)
    with pytest.raises(UsageError, match="workers is -1, expected at least 0"):
        loop(1, workers=-1)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA", "", "meta"])
def test_devices_that_do_not_exist(name: str) -> None:
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
        check_device(name)


def test_a_gpu_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = ["train", "codec", "--frames", str(tmp_path), "--steps", "1", "--out", str(tmp_path / "r")]
    assert main([*argv, "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert f"device 'cuda': torch {torch.__version__} finds no GPU" in error
    assert "leave --device out" in error
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [check_device(name) for name in ("cuda", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(UsageError, match="counted from 0, and there are 2"):
        check_device("cuda:2")


def cpu(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """A CPU that has these, as torch sees it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True), raising=False)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ((), False), (("avx2", "f16c"), False), (("avx512_f", "avx512_bw", "avx512_vnni"), False),
        (("avx512_f", "avx512_bf16"), True), (("amx_tile", "amx_bf16"), True), (("neon", "bf16"), True),
        (("neon", "fp16_arith"), False),
    ],
)  # fmt: skip
def test_bfloat16_only_by_instructions_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...], native: bool
) -> None:
    cpu(monkeypatch, *capabilities)
    assert native_bfloat16(torch.device("cpu")) is native


def test_bfloat16_of_a_torch_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_bfloat16(torch.device("cpu")) is False


def test_bfloat16_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked.append(including_emulation) or True
    )
    cpu(monkeypatch)
    assert native_bfloat16(torch.device("cuda"))
    assert asked == [False]
    cpu(monkeypatch, "avx512_bf16")
    assert not native_bfloat16(torch.device("meta"))
