"""The classifiers of Torfason et al. 2018 and their compact twins: the paper's costs, strides, shapes, the start."""

from __future__ import annotations

from typing import Any

import pytest

from latentseg.errors import UsageError

torch = pytest.importorskip("torch")

from latentseg.models import registry  # noqa: E402
from latentseg.models.complexity import count  # noqa: E402
from latentseg.models.resnet import Bottleneck  # noqa: E402


def build(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return registry.create(name, **options)


def blocks(stage: Any) -> list[Bottleneck]:
    return [part for part in stage.modules() if isinstance(part, Bottleneck)]


@pytest.mark.parametrize(
    ("name", "paper", "macs", "parameters"),
    [("torfason-resnet50", 3.86, 3.858, 25.56), ("torfason-resnet71", 5.38, 5.387, 33.38)],
)
def test_rgb_costs(name: str, paper: float, macs: float, parameters: float) -> None:
    found = count(build(name), (1, 3, 224, 224))
    assert found.macs / 1e9 == pytest.approx(paper, abs=0.01)
    assert found.macs / 1e9 == pytest.approx(macs, abs=0.0006)
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.005)


@pytest.mark.parametrize(
    ("depth", "paper", "macs", "parameters"),
    [
        (39, 2.95, (2.948, 2.952, 2.960), 25.2),
        (51, 3.83, (3.821, 3.825, 3.833), 29.7),
        (72, 5.36, (5.350, 5.354, 5.362), 37.5),
    ],
)
def test_latent_costs(depth: int, paper: float, macs: tuple[float, ...], parameters: float) -> None:
    for channels, expected in zip((8, 16, 32), macs, strict=True):
        found = count(build(f"torfason-cresnet{depth}", channels=channels), (1, channels, 28, 28))
        assert found.macs / 1e9 == pytest.approx(paper, abs=0.0105)
        assert found.macs / 1e9 == pytest.approx(expected, abs=0.0006)
        assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.06)


@pytest.mark.parametrize("depth", [39, 51, 72])
def test_a_cresnet_is_named_by_its_convolutions(depth: int) -> None:
    backbone = build(f"torfason-cresnet{depth}").backbone
    assert sum(3 for _ in blocks(backbone)) == depth  # projections do not count
    assert backbone.root is None
    assert backbone.conv2 is None


@pytest.mark.parametrize(("depth", "blocks_"), [(50, (3, 4, 6, 3)), (71, (3, 4, 13, 3))])
def test_a_resnet_is_named_by_its_layers(depth: int, blocks_: tuple[int, ...]) -> None:
    backbone = build(f"torfason-resnet{depth}").backbone
    assert tuple(len(stage) for stage in (backbone.conv2, backbone.conv3, backbone.conv4, backbone.conv5)) == blocks_
    # ResNet-50 is 3 a block, the root and the last layer. The paper's ResNet-71 has 7 blocks more, and so the same two.
    assert 3 * sum(blocks_) + 2 == depth


def test_the_stride_lies_on_the_first_1x1() -> None:
    for name, strides in (("torfason-resnet50", [1, 2, 2, 2]), ("torfason-cresnet39", [1, 2, 2])):
        backbone = build(name).backbone
        stages = [stage for stage in (backbone.conv2, backbone.conv3, backbone.conv4, backbone.conv5) if stage]
        for stage, stride in zip(stages, strides, strict=True):
            first, *others = blocks(stage)
            assert (first.conv1.stride, first.conv2.stride) == ((stride, stride), (1, 1))
            assert first.shortcut is not None
            assert first.shortcut[0].stride == (stride, stride)  # type: ignore[index]
            assert all(b.conv1.stride == b.conv2.stride == (1, 1) and b.shortcut is None for b in others)


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (5, 7), (1, 1), (1, 9)])
def test_any_latent_size(size: tuple[int, int]) -> None:
    net = build("torfason-cresnet39", channels=8, classes=7).eval()
    assert (net.classes, net.stride_in) == (7, 8)
    assert net(torch.empty(2, 8, *size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("size", [(224, 224), (64, 64), (33, 50), (8, 8), (1, 1)])
def test_any_image_size(size: tuple[int, int]) -> None:
    net = build("torfason-resnet50", classes=7).eval()
    assert (net.classes, net.stride_in) == (7, 1)
    assert net(torch.empty(2, 3, *size, device="meta")).shape == (2, 7)


def test_options() -> None:
    assert build("torfason-resnet50").classes == build("torfason-cresnet72").classes == 1000
    with pytest.raises(UsageError, match="at least one class"):
        build("compact-cresnet", classes=0)
    with pytest.raises(UsageError, match="a width of 6, expected a multiple of 4"):
        build("compact-resnet", width=6)
    with pytest.raises(UsageError, match="already part of the name"):
        build("torfason-cresnet39", depth=51)
    from latentseg.models.torfason_resnet import torfason_cresnet

    with pytest.raises(UsageError, match="a depth of 50, expected one of 39, 51, 72"):
        torfason_cresnet(50)


def test_compact_pair() -> None:
    rgb, latent = build("compact-resnet", classes=10), build("compact-cresnet", classes=10, channels=16)
    costs = [count(rgb, (1, 3, 64, 64)).macs / 1e6, count(latent, (1, 16, 8, 8)).macs / 1e6]
    assert 30 < costs[1] < costs[0] < 60
    # Root and conv2 are all that the RGB one has more, but for conv3's first block, which takes other channels.
    front = [count(rgb.backbone.root, (1, 3, 64, 64)).macs, count(rgb.backbone.conv2, (1, 32, 16, 16)).macs]
    assert costs[0] - costs[1] == pytest.approx(sum(front) / 1e6, rel=0.3)
    for stage in ("conv4", "conv5"):
        shapes = [[p.shape for p in getattr(net.backbone, stage).parameters()] for net in (rgb, latent)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "shape"), [("compact-resnet", (3, 40, 24)), ("compact-cresnet", (6, 5, 3))])
def test_real_training_step(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    options = {"channels": shape[0]} if shape[0] != 3 else {}
    net: Any = registry.create(name, classes=5, width=8, **options).train()
    assert all(bool((block.bn3.weight == 0).all()) for block in blocks(net))
    x = torch.rand(4, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.float32
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    # Zeroed branches still learn: the gradient reaches their last batch norm.
    assert all(bool((block.bn3.weight.grad != 0).any()) for block in blocks(net))  # type: ignore[union-attr]


def test_logits_do_not_depend_on_the_layout_in_memory() -> None:
    torch.manual_seed(0)
    net: Any = registry.create("compact-cresnet", classes=5, channels=6, width=8).train()
    x = torch.rand(4, 6, 5, 3)
    expected = net(x)
    net.backbone.training = False  # this flag alone: the layout; batch norm goes on training
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-6)


def test_input_is_normalised() -> None:
    torch.manual_seed(0)
    paper: Any = build("torfason-resnet50").backbone.normalise
    with torch.no_grad():
        normalise = type(paper)()
        grey = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
        assert bool((normalise(grey).abs() < 1e-6).all())
        step = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
        torch.testing.assert_close(normalise(grey + 2 * step), torch.full((1, 3, 1, 1), 2.0))
        # A latent's channels may differ a hundredfold.
        net: Any = registry.create("compact-cresnet", channels=3, width=4).train()
        z = torch.randn(8, 3, 6, 5) * torch.tensor([0.3, 30.0, 3.0])[:, None, None] + 7.0
        seen = net.backbone.normalise(z)
        torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0.0)
        torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(3), atol=5e-3, rtol=0.0)
