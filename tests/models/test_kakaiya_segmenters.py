"""The paper's segmenters: the contract, shapes at awkward sizes, the auxiliary head, the dilations, the start."""

from __future__ import annotations

from typing import Any

import pytest

from latentseg.errors import UsageError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from latentseg.models import registry, resnet  # noqa: E402


@pytest.fixture(scope="module")
def rgb() -> Any:
    with torch.device("meta"):
        return registry.create("kakaiya-rgb", classes=11, aux=True)


@pytest.fixture(scope="module")
def latent() -> Any:
    with torch.device("meta"):
        return registry.create("kakaiya-latent-d3", classes=11, aux=True)


def positions(pixels: int) -> int:
    """Rows of the RGB network's logits: convolution, ceil-mode pool, convolution, each of stride 2."""
    half = -(-pixels // 2)
    pooled = -(-(half + 2 - 3) // 2) + 1
    if (pooled - 1) * 2 >= half + 1:  # the last window may not start beyond the input
        pooled -= 1
    return -(-pooled // 2)


@pytest.mark.parametrize("size", [(840, 840), (360, 480), (97, 101), (33, 64), (16, 1), (1, 1), (2, 3)])
def test_rgb_shapes(rgb: Any, size: tuple[int, int]) -> None:
    rgb.eval()
    logits = rgb(torch.empty(2, 3, *size, device="meta"))
    assert logits.shape == (2, 11, positions(size[0]), positions(size[1]))
    if size == (840, 840):
        assert logits.shape[2] == 106


@pytest.mark.parametrize("size", [(105, 105), (52, 52), (7, 13), (1, 1), (1, 9)])
def test_latent_shapes(latent: Any, size: tuple[int, int]) -> None:
    latent.eval()
    assert latent(torch.empty(2, 16, *size, device="meta")).shape == (2, 11, *size)


def test_contract(rgb: Any, latent: Any) -> None:
    assert (rgb.classes, rgb.stride_in, rgb.logit_stride, rgb.align_corners) == (11, 1, 8, True)
    assert (latent.classes, latent.stride_in, latent.logit_stride, latent.align_corners) == (11, 16, 16, True)
    with torch.device("meta"):
        assert [registry.create(f"kakaiya-latent-d{d}").stride_in for d in (1, 2, 3)] == [4, 8, 16]
        assert registry.create("kakaiya-rgb").classes == 21
    with pytest.raises(UsageError, match="at least one class"):
        registry.create("kakaiya-rgb", classes=0)


def test_auxiliary_logits_only_in_training(latent: Any) -> None:
    latent.train()
    logits, aux = latent(torch.empty(2, 16, 9, 8, device="meta"))
    assert logits.shape == aux.shape == (2, 11, 9, 8)
    with torch.device("meta"):
        plain = registry.create("kakaiya-latent-d2")
    assert plain.aux is None
    assert plain.train()(torch.empty(2, 16, 9, 8, device="meta")).shape == (2, 21, 9, 8)


def test_dilations_and_strides() -> None:
    with torch.device("meta"):
        stages: Any = [resnet.layer1(), resnet.layer2(), resnet.layer3(), resnet.layer4()]
    found = [[(block.conv2.dilation[0], block.conv2.stride[0]) for block in stage] for stage in stages]
    assert found == [
        [(1, 1)] * 3,
        [(1, 2)] + [(1, 1)] * 3,
        [(2, 1)] * 6,
        [(4, 1), (8, 1), (16, 1)],
    ]
    assert [[block.shortcut is not None for block in stage] for stage in stages] == [
        [True] + [False] * (len(stage) - 1) for stage in stages
    ]


def test_bottleneck_adds_its_shortcut() -> None:
    # With the last batch norm at zero a block is its shortcut and the ReLU.
    block = resnet.Bottleneck(8, 2).eval()
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(1, 8, 5, 6)
    assert torch.equal(block(x), x.relu())


def test_real_forward() -> None:
    # The one run of the whole RGB network on numbers: finite at the start, and batch-independent in eval mode.
    torch.manual_seed(0)
    # In float64: in float32 the sums of some CPUs' kernels differ by more than a small logit here allows.
    net = registry.create("kakaiya-rgb", classes=5).double().eval()
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        logits = net(x)
        alone = net(x[1:])
    assert logits.shape == (2, 5, positions(64), positions(64)) == (2, 5, 9, 9)
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(alone, logits[1:], rtol=1e-9, atol=0)


def test_real_training_step() -> None:
    torch.manual_seed(0)
    net = registry.create("kakaiya-latent-d2", classes=5, aux=True).train()
    logits, aux = net(torch.rand(2, 16, 12, 16))
    labels = torch.randint(0, 5, (2, 12, 16))
    loss = nn.functional.cross_entropy(logits, labels) + 0.4 * nn.functional.cross_entropy(aux, labels)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
