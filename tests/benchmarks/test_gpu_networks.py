"""A bundle of networks with random weights that a measurement takes: exported as others are, and said to be random."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from _registered import registered
from torch import nn

from latentseg.benchmarks import gpu_networks
from latentseg.benchmarks.gpu_engines import Ungated
from latentseg.benchmarks.gpu_material import Material, synthetic_clip
from latentseg.benchmarks.gpu_networks import noise_frames, settle, write_networks
from latentseg.engine.bundle import load_bundle
from latentseg.errors import BackendMissingError
from latentseg.models import registry


class Codec(nn.Module):
    """Block means, and blocks of them."""

    stride, channels, bits, scaling, tile = 8, 3, 8, ("fixed", 0.0, 1.0), (14, 32)

    def __init__(self) -> None:
        super().__init__()
        self.compressor, self.decompressor = nn.AvgPool2d(8), nn.Upsample(scale_factor=8.0)


class Segmenter(nn.Module):
    """A convolution and a batch norm."""

    align_corners = False

    def __init__(self, classes: int, stride: int) -> None:
        super().__init__()
        self.classes, self.stride_in = classes, stride
        self.body = nn.Sequential(nn.Conv2d(3, classes, 3, padding=1), nn.BatchNorm2d(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def networks() -> Iterator[None]:
    """Tiny networks by their names, for these tests alone."""
    with registered(
        ("test-codec", "codec", Codec),
        ("test-latent", "latent_segmenter", lambda classes: Segmenter(classes, 8)),
        ("test-rgb", "rgb_segmenter", lambda classes: Segmenter(classes, 1)),
    ):
        yield


def test_small_networks_end_to_end(tmp_path: Path) -> None:
    segmenters = {"segmenter": ("test-latent", {}), "rgb_segmenter": ("test-rgb", {})}
    write_networks(
        tmp_path / "net", codec=("test-codec", {}), segmenters=segmenters, size=(64, 96), largest=(96, 128)
    )  # fmt: skip
    bundle = load_bundle(tmp_path / "net")
    assert set(bundle.roles) == {"compressor", "decompressor", "segmenter", "rgb_segmenter"}
    assert len(bundle.classes) == 19
    material = Material(bundle, synthetic_clip(1, (40, 56)))
    assert material.weights == "random"
    labels = material.truth("compressed", "fp32")
    assert labels.shape == (1, 40, 56)
    assert len(np.unique(labels)) > 1
    half = Ungated(bundle, tmp_path)
    for role, kind in (("segmenter", "tensor(float16)"), ("rgb_segmenter", "tensor(uint8)")):
        assert half.variants(role) == ("fp32", "fp16")
        session = ort.InferenceSession(half.model_path(role, "fp16"), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].type == kind
    assert half.variants("compressor") == ("fp32",)
    assert half.model_path("segmenter") == bundle.model_path("segmenter")


def test_the_papers_networks_are_the_default() -> None:
    names = [gpu_networks.CODEC[0], *(name for name, _ in gpu_networks.SEGMENTERS.values())]
    assert names == ["kakaiya-codec-d2", "kakaiya-latent-d2", "kakaiya-rgb"]
    assert set(names) <= set(registry.names())


def test_batch_norms_are_set_on_what_reaches_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    x = 100 * torch.randn(2, 3, 20, 24) + 7
    settle(net, x)
    with torch.no_grad():
        found = net(x)
    assert not net.training
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(5), atol=1e-2)
    assert torch.allclose(found.std((0, 2, 3)), torch.ones(5), atol=1e-2)


def test_frames_are_the_same_everywhere_and_fill_the_range() -> None:
    first, again = noise_frames(2, 37, 50), noise_frames(2, 37, 50)
    assert np.array_equal(first, again)
    assert (first.shape, first.dtype) == ((2, 37, 50, 3), np.uint8)
    assert first.std() > 30


def test_what_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_networks.main([str(tmp_path / "net")]) == BackendMissingError.exit_code
    assert "the package 'torch'" in capsys.readouterr().err
