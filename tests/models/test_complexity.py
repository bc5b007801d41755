"""The counter against hand counts, and every row of the paper's Table I (Kakaiya et al. 2023) that can be reproduced.

The numbers are for 3x840x840 input and 21 classes. Networks lie on the meta device: no weight is ever allocated.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from latentseg.models import registry, resnet  # noqa: E402
from latentseg.models.complexity import Complexity, count  # noqa: E402
from latentseg.models.kakaiya_segmenters import unused_in_the_paper  # noqa: E402

GIGA = 1e9


def build(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return registry.create(name, **options)


# --- the counter itself ---


def test_hand_counts() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 8 x 4 x 4 outputs of 27 products, and a bias each
        nn.BatchNorm2d(8),  # 2 x 128
        nn.ReLU(),  # 128
        nn.MaxPool2d(2),  # 128 inputs
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),  # 8 x 2 x 2 outputs of 18 products
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    macs = 128 * 27 + 32 * 18 + 5 * 32
    parameters = 8 * 28 + 16 + 8 * 18 + 5 * 33
    assert count(net, (1, 3, 7, 8)) == Complexity(parameters, macs, macs + 128 + 256 + 128 + 128 + 5)


def test_transposed_and_one_dimensional_convolutions() -> None:
    assert count(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 5, 5)).macs == 4 * 25 * 3 * 9
    assert count(nn.Conv1d(4, 6, 1), (2, 4, 5)) == Complexity(30, 240, 300)


class Uneven(nn.Module):
    """One layer called twice, one whose weight is the same tensor, one that only training calls, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.tied, self.aux, self.never = (nn.Conv2d(2, 2, 1, bias=False) for _ in range(4))
        self.tied.weight = self.twice.weight

    def forward(self, x: Any) -> Any:
        y = self.tied(self.twice(self.twice(x)))
        return self.aux(y) if self.training else y


def test_only_what_runs_counts_and_nothing_changes() -> None:
    net = Uneven()
    net.aux.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert count(net, (1, 2, 3, 3)) == Complexity(4, 3 * 36, 3 * 36)
    assert count(net, (1, 2, 3, 3), training=True).parameters == 8
    assert net.training
    assert not net.aux.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(part._forward_hooks for part in net.modules())


# --- Table I ---


@pytest.mark.parametrize(
    ("d", "parameters", "cost", "macs"),
    [(1, 121_808, 16.399, 16.257), (2, 195_664, 18.133, 17.984), (3, 269_520, 18.569, 18.419)],
)
def test_net_c(d: int, parameters: int, cost: float, macs: float) -> None:
    found = count(build(f"kakaiya-codec-d{d}").compressor, (1, 3, 840, 840))
    assert found.parameters == parameters
    assert found.table_rule / GIGA == pytest.approx(cost, abs=0.0005)
    assert found.macs / GIGA == pytest.approx(macs, abs=0.0006)


@pytest.mark.parametrize(
    ("d", "latent", "parameters", "cost"), [(1, 210, 163_916, 8.159), (2, 105, 311_628, 9.481), (3, 53, 459_340, 10.0)]
)
def test_net_d(d: int, latent: int, parameters: int, cost: float) -> None:
    found = count(build(f"kakaiya-codec-d{d}").decompressor, (1, 16, latent, latent))
    assert found.parameters == parameters
    assert found.table_rule / GIGA == pytest.approx(cost, abs=0.0006)
    if d == 2:
        assert found.macs / GIGA == pytest.approx(9.449, abs=0.0005)


@pytest.mark.parametrize(
    ("d", "latent", "cost", "macs"),
    [(1, 210, 2053.530, 2050.45), (2, 105, 513.401, 512.63), (3, 52, 125.927, 125.74)],
)
def test_latent_segmenter_cost(d: int, latent: int, cost: float, macs: float) -> None:
    found = count(build(f"kakaiya-latent-d{d}"), (1, 16, latent, latent))
    assert found.table_rule / GIGA == pytest.approx(cost, abs=0.0006)
    assert found.macs / GIGA == pytest.approx(macs, abs=0.005)


def test_latent_segmenter_parameters() -> None:
    net = build("kakaiya-latent-d2", aux=True)
    used = count(net, (1, 16, 52, 52), training=True).parameters
    assert used == sum(p.numel() for p in net.parameters()) == 51_956_522
    assert count(net, (1, 16, 52, 52)).parameters == 47_225_621
    unused = unused_in_the_paper()
    assert unused == {"layer1": 236_288, "layer2": 1_219_584, "bn": 256}
    assert used + sum(unused.values()) == 53_412_650
    assert count(net.widen, (1, 16, 105, 105)).parameters == 8_704
    assert count(net.widen, (1, 16, 105, 105)).table_rule / GIGA == pytest.approx(0.096, abs=0.0005)


def test_rgb_segmenter_parameters() -> None:
    net = build("kakaiya-rgb", aux=True)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert parts == {
        "stem": 112_832,
        "layer1": 236_288,
        "layer2": 1_219_584,
        "layer3": 7_098_368,
        "layer4": 14_964_736,
        "head": 25_153_813,
        "aux": 4_730_901,
    }
    assert sum(parts.values()) == 53_516_522
    # Row net_seg,D of Table I counts all but the stem.
    assert sum(parts.values()) - parts["stem"] == 53_403_690
    assert sum(p.numel() for p in build("kakaiya-rgb", classes=19, aux=True).parameters()) == 53_514_470
    assert count(net, (1, 3, 64, 64)).parameters == sum(parts.values()) - parts["aux"] == 48_785_621


def test_head_parts() -> None:
    head = build("kakaiya-rgb").head
    graph = head.graph
    for part, expected in (
        (head.before, 9_438_208),
        (graph, 1_547_008),
        (graph.affinity, 592_640),
        (head.after, 2_360_320),
        (head.classify, 11_808_277),
    ):
        assert sum(p.numel() for p in part.parameters()) == expected


def test_stage_costs() -> None:
    net = build("kakaiya-rgb")
    stages = [
        count(net.layer3, (1, 512, 105, 105)).table_rule / GIGA,
        count(net.layer4, (1, 1024, 105, 105)).table_rule / GIGA,
        count(net.head, (1, 2048, 105, 105)).table_rule / GIGA,
    ]
    assert stages == pytest.approx([78.36, 165.09, 269.86], abs=0.005)
    assert sum(stages) == pytest.approx(513.305, abs=0.0006)

    entry: list[nn.Module] = []
    for part, expected in ((net.stem, 19.97), (net.layer1, 30.54), (net.layer2, 45.38)):
        entry.append(part)
        found = count(nn.Sequential(*entry), (1, 3, 840, 840)).table_rule / GIGA
        assert found == pytest.approx(expected, abs=0.005)
    # 840 pixels give 106 positions (ceil-mode pool), so that layer3 onward costs more than on a latent of 105.
    total = count(net, (1, 3, 840, 840)).table_rule / GIGA
    assert total == pytest.approx(568.51, abs=0.005)
    assert total - found == pytest.approx(523.13, abs=0.006)
    latent = count(build("kakaiya-latent-d2"), (1, 16, 105, 105)).table_rule / GIGA
    assert total - latent == pytest.approx(55.11, abs=0.005)


@pytest.mark.parametrize(("size", "cost"), [((769, 769), 16.78), ((832, 832), 19.59), ((1024, 2048), 59.36)])
def test_stem_cost(size: tuple[int, int], cost: float) -> None:
    with torch.device("meta"):
        stem = resnet.deep_stem()
    assert count(stem, (1, 3, *size)).table_rule / GIGA == pytest.approx(cost, abs=0.005)


# --- Torfason et al. 2018 ---


@pytest.mark.parametrize(("channels", "macs"), [(8, 3.497), (16, 3.517), (32, 3.557)])
def test_encoder(channels: int, macs: float) -> None:
    codec = build(f"torfason-codec-c{channels}")
    assert count(codec.compressor, (1, 3, 224, 224)).macs / GIGA == pytest.approx(macs, abs=0.0005)
    assert count(codec.decompressor, (1, channels, 28, 28)).macs / GIGA == pytest.approx(3.5, abs=0.02)
