"""The DeepLab segmenters of Torfason et al. 2018 and their compact twins: layout, grids, the pyramid, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentseg.errors import UsageError

torch = pytest.importorskip("torch")

from latentseg.models import registry  # noqa: E402
from latentseg.models.complexity import count  # noqa: E402
from latentseg.models.resnet import Bottleneck  # noqa: E402
from latentseg.models.torfason_deeplab import Pyramid  # noqa: E402

RGB = ["torfason-deeplab-resnet50", "torfason-deeplab-resnet71", "compact-deeplab"]
LATENT = [*(f"torfason-deeplab-cresnet{d}" for d in (39, 51, 72)), "compact-cdeeplab"]


def build(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return registry.create(name, **options)


@pytest.mark.parametrize("name", [*RGB, *LATENT])
def test_contract_and_grid(name: str) -> None:
    rgb = name in RGB
    net = build(name, classes=5, **({} if rgb else {"channels": 8})).eval()
    assert (net.classes, net.stride_in, net.logit_stride) == (5, 1 if rgb else 8, 8)
    assert net.align_corners is False
    # Whatever the size of the frame, RGB and latent networks give the same grid: the latent's.
    for height, width in ((1, 1), (5, 7), (1, 9), (40, 40)):
        x = torch.empty(2, *((3, 8 * height, 8 * width) if rgb else (8, height, width)), device="meta")
        assert net(x).shape == (2, 5, height, width)


@pytest.mark.parametrize("name", [*RGB, *LATENT])
def test_dilated_in_place_of_strided(name: str) -> None:
    backbone = build(name).backbone
    expected = {"conv3": ({2} if name in RGB else {1}, 1), "conv4": ({1}, 2), "conv5": ({1}, 4)}
    for stage, (strides, dilation) in expected.items():
        found = [part for part in getattr(backbone, stage).modules() if isinstance(part, Bottleneck)]
        assert {found[0].conv1.stride[0], found[0].shortcut[0].stride[0]} == strides  # type: ignore[index]
        assert {block.conv2.dilation for block in found} == {(dilation, dilation)}
        assert {block.conv2.stride for block in found} == {(1, 1)}


@pytest.mark.parametrize(
    ("segmenter", "classifier", "shape"),
    [
        ("torfason-deeplab-resnet71", "torfason-resnet71", (1, 3, 64, 64)),
        ("torfason-deeplab-cresnet51", "torfason-cresnet51", (1, 32, 8, 8)),
    ],
)
def test_a_classifier_lends_its_backbone(segmenter: str, classifier: str, shape: tuple[int, ...]) -> None:
    """The paper trains the segmenters from its classifiers: the tensors have the same names and shapes."""
    shapes = [{k: v.shape for k, v in build(n).backbone.state_dict().items()} for n in (segmenter, classifier)]
    assert shapes[0] == shapes[1]
    assert build(segmenter).classes == 21
    head = count(build(segmenter), shape).parameters - count(build(segmenter).backbone, shape).parameters
    assert head == 4 * (2048 * 9 + 1) * 21


def test_pyramid_by_hand() -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(3, 2)
    for branch in pyramid.branches:
        torch.nn.init.normal_(branch.weight)
        torch.nn.init.normal_(branch.bias)
    size = (31, 29)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        found = pyramid(x)[0].numpy()
    rng = np.random.default_rng(0)
    image = x[0].numpy().astype(np.float64)
    for row, column in [(0, 0), (30, 28), (15, 14), *rng.integers(0, size, (4, 2)).tolist()]:
        expected = np.zeros(2)
        for branch, rate in zip(pyramid.branches, (6, 12, 18, 24), strict=True):
            weight, bias = branch.weight.detach().numpy(), branch.bias.detach().numpy()
            expected += bias
            for i in range(3):
                for j in range(3):
                    y, z = row + rate * (i - 1), column + rate * (j - 1)
                    if 0 <= y < size[0] and 0 <= z < size[1]:
                        expected += weight[:, :, i, j] @ image[:, y, z]
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-4, atol=1e-4)


def test_start() -> None:
    torch.manual_seed(0)
    net: Any = registry.create("compact-cdeeplab", classes=5, channels=6, width=16).train()
    logits = net(torch.randn(4, 6, 9, 7))
    # Small logits, so that the loss starts at a guess among the classes.
    loss = torch.nn.functional.cross_entropy(logits, torch.randint(0, 5, (4, 9, 7)))
    assert loss.item() == pytest.approx(np.log(5), abs=0.15)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert logits.is_contiguous()
    with pytest.raises(UsageError, match="at least one class"):
        build("compact-deeplab", classes=0)


def test_compact_pair() -> None:
    rgb, latent = build("compact-deeplab"), build("compact-cdeeplab", channels=8)
    costs = [count(rgb, (1, 3, 360, 480)).macs, count(latent, (1, 8, 45, 60)).macs]
    front = [count(rgb.backbone.root, (1, 3, 360, 480)).macs, count(rgb.backbone.conv2, (1, 16, 90, 120)).macs]
    assert 2.4e9 < costs[1] < costs[0] < 3e9
    assert costs[0] == pytest.approx(costs[1] + sum(front), rel=0.02)
    for stage in ("conv4", "conv5"):
        shapes = [[p.shape for p in getattr(net.backbone, stage).parameters()] for net in (rgb, latent)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["compact-deeplab", "compact-cdeeplab", "compact-resnet", "compact-cresnet"])
def test_export_gives_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    channels = 6 if name in {"compact-cdeeplab", "compact-cresnet"} else 3
    net: Any = registry.create(name, classes=5, width=8, **({} if channels == 3 else {"channels": channels})).eval()
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            part.running_mean.normal_(0.0, 0.2)  # type: ignore[union-attr]
        if isinstance(part, Bottleneck):
            torch.nn.init.uniform_(part.bn3.weight, 0.2, 0.5)
    stride = 1 if channels == 6 else 8
    h, w = (torch.export.Dim(side, min=1, max=1024) for side in ("h", "w"))
    dims = {0: torch.export.Dim("n", min=1, max=64), 2: stride * h, 3: stride * w}
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net, (torch.rand(2, channels, 6 * stride, 4 * stride),), str(path), dynamo=True, opset_version=18,
        input_names=["x"], dynamic_shapes=(dims,), external_data=False, verbose=False,
    )  # fmt: skip
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 1, 1), (3, 5, 7), (1, 1, 30)):
        x = torch.rand(batch, channels, height * stride, width * stride)
        with torch.no_grad():
            expected = net(x).numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
