"""The torch backend on the CPU: exported programs against block means by hand, and every way to be refused."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_bundle import block_means
from torch import Tensor, nn

from latentseg.engine.backends import open_backend
from latentseg.engine.backends import torch as module
from latentseg.errors import ArtifactError, BackendMissingError, UsageError


class Means(nn.Module):
    """The tiny bundle's compressor: uint8 (N, H, W, 3) to block means float32 (N, 3, H/8, W/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 3, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).to(torch.float32), 8) * self.scale


class Two(nn.Module):
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return frames + 1, frames + 2


class Halved(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return frames.half()


def export(network: nn.Module, path: Path) -> Path:
    n, h, w = torch.export.Dim("n", max=4), torch.export.Dim("h", max=64), torch.export.Dim("w", max=64)
    frames = torch.zeros(2, 48, 64, 3, dtype=torch.uint8)
    program = torch.export.export(network, (frames,), dynamic_shapes=({0: n, 1: 8 * h, 2: 8 * w},))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Means(), tmp_path_factory.mktemp("program") / "means.pt2")


@pytest.fixture
def settings() -> Iterator[None]:
    """What loading changes for the whole process comes back."""
    threads, flags = torch.get_num_threads(), (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [flag.allow_tf32 for flag in flags]
    yield
    torch.set_num_threads(threads)
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)


def test_runs_and_tells(means: Path, settings: None) -> None:
    torch.backends.cudnn.allow_tf32 = True
    with open_backend(means, "torch", threads=2, provider="cpu") as backend:
        assert (backend.provider, backend.asked) == ("cpu", "cpu")
        assert str(backend.input) == "frames: uint8[?, ?, ?, 3]"
        assert str(backend.output) == "output: float32[?, 3, ?, ?]"
        assert torch.get_num_threads() == 2
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        for shape in ((1, 8, 8, 3), (3, 8, 56, 3), (4, 40, 24, 3)):
            np.testing.assert_array_equal(backend.run(noise(*shape)), block_means(noise(*shape)))
        frames = noise(2, 32, 24, 3)
        frames.flags.writeable = False
        np.testing.assert_array_equal(backend.run(frames), block_means(frames))
        np.testing.assert_array_equal(backend.run(frames[:, ::2]), block_means(frames[:, ::2]))  # not contiguous
        assert backend.runs == 5


@pytest.mark.parametrize("shape", [(5, 8, 8, 3), (1, 8, 12, 3), (1, 8, 520, 3)])
def test_shapes_that_the_program_does_not_take(means: Path, shape: tuple[int, ...]) -> None:
    with open_backend(means, "torch", provider="cpu") as backend:
        with pytest.raises(ArtifactError, match=r"means.pt2 failed on input"):
            backend.run(noise(*shape))
        with pytest.raises(ArtifactError, match=r"input is float32\[1, 8, 8, 3\], expected frames: uint8"):
            backend.run(np.zeros((1, 8, 8, 3), np.float32))
        assert backend.runs == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this one has CUDA")
def test_gpu_asked_for_and_not_there(means: Path) -> None:
    for provider in (None, "cuda"):
        with pytest.raises(BackendMissingError, match=r"asked for cuda, found: torch .* sees 0 GPUs") as caught:
            open_backend(means, "torch", provider=provider)
        assert caught.value.exit_code == 6
    with pytest.raises(UsageError, match="backend torch has no provider 'rocm'") as wrong:
        open_backend(means, "torch", provider="rocm")
    assert wrong.value.hint == "its providers: cuda, cpu"


def test_what_is_not_installed(means: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    with pytest.raises(BackendMissingError, match="'triton', which is not installed"):
        open_backend(means, "torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendMissingError, match="'torch', which is not installed"):
        open_backend(means, "torch", provider="cpu")


def test_not_a_program(means: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.pt2").write_bytes(b"not a zip at all")
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("empty/archive_format", "pt2")
    (tmp_path / "cut.pt2").write_bytes(means.read_bytes()[:-100])
    for name in ("junk", "empty", "cut"):
        with pytest.raises(ArtifactError, match="cannot load") as caught:
            open_backend(tmp_path / f"{name}.pt2", "torch", provider="cpu")
        assert "--programs" in caught.value.hint
    with pytest.raises(ArtifactError, match="1 inputs and 2 outputs"):
        open_backend(export(Two(), tmp_path / "two.pt2"), "torch", provider="cpu")
    with pytest.raises(ArtifactError, match="is float16, expected uint8, float32 or int64"):
        open_backend(export(Halved(), tmp_path / "half.pt2"), "torch", provider="cpu")


def test_what_goes_wrong_in_a_run(means: Path) -> None:
    def fail(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory\nwith more lines")

    with open_backend(means, "torch", provider="cpu") as backend:
        backend._run_program = fail  # type: ignore[attr-defined]
        with pytest.raises(ArtifactError, match=r"CUDA out of memory$"):
            backend.run(noise(1, 8, 8, 3))
        backend._run_program = lambda frames: frames.to("meta")  # type: ignore[attr-defined]
        with pytest.raises(BackendMissingError, match="asked for cpu, found: the output on meta"):
            backend.run(noise(1, 8, 8, 3))


def test_a_program_moves_to_another_device_as_a_whole(means: Path) -> None:
    """The meta device stands in for a GPU: whatever stayed on the CPU would fail there just the same."""
    moved = module._moved(torch.export.load(means), "meta").module(check_guards=False)
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    output = moved(torch.zeros(3, 16, 24, 3, dtype=torch.uint8, device="meta"))
    assert (output.device.type, tuple(output.shape)) == ("meta", (3, 3, 2, 3))


def test_compiling_covers_every_shape_and_never_gives_up(means: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of torch.compile but the making of kernels, which needs a GPU or a C++ compiler."""
    asked, real = {}, torch.compile

    def compile_without_kernels(program: nn.Module, **options: Any) -> Any:
        asked.update(options)
        return real(program, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_without_kernels)
    compiled = module._compiled(torch, torch.export.load(means).module(check_guards=False))
    assert asked == {"fullgraph": True}
    assert torch._dynamo.config.recompile_limit >= 12
    try:
        for shape in ((1, 8, 8, 3), (2, 24, 32, 3), (1, 24, 8, 3), (4, 64, 72, 3), (3, 16, 40, 3)):
            output = compiled(torch.from_numpy(noise(*shape)))
            np.testing.assert_array_equal(output.detach().numpy(), block_means(noise(*shape)))
    finally:
        torch._dynamo.reset()
