"""The compact networks: contracts, PCA start, rate model against a plain computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latentseg.errors import UsageError
from latentseg.models import registry
from latentseg.models.complexity import count
from latentseg.models.rate_model import LaplaceRateModel, neighbours


def natural_patches(count_: int) -> torch.Tensor:
    """Smooth random 8x8 RGB patches (count, 192): a random walk of colours, far from white noise."""
    rng = np.random.default_rng(0)
    low = torch.tensor(rng.uniform(0, 1, (count_, 3, 3, 3)), dtype=torch.float32)
    smooth = F.interpolate(low, size=(8, 8), mode="bicubic", align_corners=True).clamp(0, 1)
    noise = 0.05 * torch.tensor(rng.standard_normal((count_, 3, 8, 8)), dtype=torch.float32)
    return F.pixel_unshuffle((smooth + noise).clamp(0, 1), 8)[:, :, 0, 0]


def test_pca_start_is_the_pca() -> None:
    patches = natural_patches(600)
    codec = registry.create("compact-codec", channels=12).eval()
    codec.pca_init(patches, step=20.0)
    # Independent truth: singular value decomposition in NumPy, projection onto the 12 leading directions.
    data = patches.double().numpy() - 0.5
    mean = data.mean(0)
    _, _, vt = np.linalg.svd(data - mean, full_matrices=False)
    expected = (data - mean) @ vt[:12].T @ vt[:12] + mean + 0.5
    image = F.pixel_shuffle(patches[:, :, None, None], 8)
    with torch.no_grad():
        z = codec.compress(image)
        decoded = F.pixel_unshuffle(codec.decompress(z), 8)[:, :, 0, 0]
    inside = (expected > 0) & (expected < 1)  # outside, the decompressor clamps
    np.testing.assert_allclose(decoded.numpy()[inside], expected[inside], atol=2e-4)
    # An orthonormal coefficient in units of 1/255, divided by the step.
    scores = (data - mean) @ vt[:12].T * 255.0 / 20.0
    np.testing.assert_allclose(np.abs(z[:, :, 0, 0].numpy()), np.abs(scores), atol=5e-3)


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (104, 136)])
def test_codec_shapes_and_straight_through(size: tuple[int, int]) -> None:
    codec = registry.create("compact-codec", channels=7)
    x = torch.rand(2, 3, *size)
    z = codec.compress(x)
    assert z.shape == (2, 7, size[0] // 8, size[1] // 8)
    assert codec.decompress(z).shape == x.shape
    big = torch.tensor([[-500.0, -1.6, 0.4, 0.5, 1.5, 500.0]], requires_grad=True)
    q = codec.quantised(big)
    assert q.tolist() == [[-128.0, -2.0, 0.0, 0.0, 2.0, 127.0]]  # half to even, clipped to the range
    q.sum().backward()
    assert big.grad is not None
    assert big.grad.tolist() == [[1.0] * 6]


def test_a_step_scales_the_rounding_and_the_range() -> None:
    codec = registry.create("compact-codec", bits=3)  # -4 .. 3
    z = torch.tensor([0.0, 0.24, 0.26, 1.3, 5.0, -9.0], requires_grad=True).reshape(1, 6, 1, 1).expand(2, 6, 1, 1)
    q = codec.quantised(z, torch.tensor([0.5, 2.0])[:, None, None, None])
    assert q[0].flatten().tolist() == [0.0, 0.0, 0.5, 1.5, 1.5, -2.0]
    assert q[1].flatten().tolist() == [0.0, 0.0, 0.0, 2.0, 4.0, -8.0]
    (slope,) = torch.autograd.grad(q.sum(), z)
    assert slope.flatten().tolist() == [1.0] * 12


@pytest.mark.parametrize(("network", "channels"), [("compact-rgb", 3), ("compact-latent", 32)])
@pytest.mark.parametrize("detail", [1, 2, 8])
def test_the_head_has_detail_squared_logits_a_position(network: str, channels: int, detail: int) -> None:
    net = registry.create(network, classes=5, width=16, detail=detail).eval()
    side = 24 if channels == 3 else 3
    assert net(torch.zeros(1, channels, side, side)).shape == (1, 5, 3 * detail, 3 * detail)
    assert net.logit_stride * detail == 8
    with pytest.raises(UsageError, match="expected 1, 2, 4 or 8"):
        registry.create(network, detail=3)


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_unpacked_latents_of_any_stride(stride: int) -> None:
    net = registry.create("compact-unpacked", classes=5, channels=3, width=16, stride_in=stride).eval()
    assert net.stride_in == stride
    logits = net(torch.zeros(1, 3, 48 // stride, 80 // stride))
    assert logits.shape == (1, 5, 48 // net.logit_stride, 80 // net.logit_stride)


def test_unpacked_is_the_rgb_entry_on_a_linear_image() -> None:
    torch.manual_seed(0)
    rgb = registry.create("compact-rgb", classes=3, width=16, dilations=[1]).eval()
    for module in rgb.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    # With as many first channels as the giver has, nothing is lost.
    net = registry.create("compact-unpacked", classes=3, channels=5, width=16, dilations=[1], root=4).eval()
    net.trunk.load_state_dict(rgb.trunk.state_dict())
    net.entry.take_over(rgb.entry)
    z = torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        weight, bias = net.entry.unpack.weight[:, :, 0, 0], net.entry.unpack.bias
        # By hand: value (c, y, x) of a position is row 64 c + 8 y + x of the matrix.
        values = torch.einsum("oc,nchw->nohw", weight, z) + bias[:, None, None]
        image = values.reshape(2, 3, 8, 8, 3, 4).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 24, 32)
        torch.testing.assert_close(net(z), rgb(image), rtol=1e-4, atol=1e-5)
    # With fewer, the ones that make least of a difference go.
    with torch.no_grad():
        rgb.entry[1][1].weight[2] = 0.0
        rgb.entry[1][1].bias[2] = 0.0
    less = registry.create("compact-unpacked", classes=3, channels=5, width=16, dilations=[1], root=3).eval()
    less.trunk.load_state_dict(rgb.trunk.state_dict())
    less.entry.take_over(rgb.entry)
    less.entry.unpack.load_state_dict(net.entry.unpack.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(less(z), rgb(image), rtol=1e-4, atol=1e-5)


def test_unpacked_refuses_what_cannot_be() -> None:
    for options in ({"root": -1}, {"stride_in": 0}):
        with pytest.raises(UsageError, match="expected at least 0 and 1"):
            registry.create("compact-unpacked", **options)


def test_unpacked_costs_no_more_than_rgb() -> None:
    rgb = count(registry.create("compact-rgb"), (1, 3, 360, 480)).macs
    assert count(registry.create("compact-unpacked"), (1, 32, 45, 60)).macs <= rgb


def test_fixed_scaling_is_plain_rounding() -> None:
    mode, lo, hi = registry.create("compact-codec", bits=6).scaling
    assert (mode, lo, hi) == ("fixed", -32.0, 31.0)
    assert hi - lo == 2**6 - 1


def around(rows: list[list[float]], y: int, x: int) -> tuple[float, float, float, float, float]:
    """W, WW, N, NW, NE of one position, by the rules of docs/format.md, with 0 about the first symbol."""
    if y == 0:
        before = ([0.0, 0.0, *rows[0]])[x : x + 2]
        return before[1], before[0], before[1], before[1], before[1]
    above, row = rows[y - 1], rows[y]
    north_east = above[x + 1] if x + 1 < len(above) else above[x]
    if x == 0:
        return above[0], above[0], above[0], above[0], north_east
    return row[x - 1], row[x - 2] if x > 1 else above[0], above[x], above[x - 1], north_east


def reference_bits(z: list[list[float]], predicted: bool, floor: float, slope: float) -> list[list[float]]:
    """The docstring's formula over one channel, symbol by symbol, in double precision."""

    def cdf(x: float) -> float:
        return 0.5 * math.exp(x) if x < 0 else 1 - 0.5 * math.exp(-x)

    bits, sizes = [[0.0] * len(row) for row in z], [[0.0] * len(row) for row in z]
    for y, row in enumerate(z):
        for x, symbol in enumerate(row):
            west, _, north, north_west, _ = around(z, y, x)
            e = symbol - (sorted((west, north, west + north - north_west))[1] if predicted else 0.0)
            west, west2, north, _, north_east = around(sizes, y, x)
            scale = floor + slope * (2 * west + west2 + 2 * north + north_east)
            bits[y][x] = -math.log2(cdf((e + 0.5) / scale) - cdf((e - 0.5) / scale))
            sizes[y][x] = abs(e)
    return bits


def rate_model(predicted: list[float], seed: int = 3) -> LaplaceRateModel:
    """A model with a channel for each of `predicted`, and parameters of all sizes."""
    model = LaplaceRateModel(len(predicted))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05)
        model.predicted.copy_(torch.tensor(predicted)[:, None, None])
    return model


@pytest.mark.parametrize("size", [(5, 7), (4, 2), (1, 6), (6, 1), (1, 1)])
def test_rate_model_against_the_formula(size: tuple[int, int]) -> None:
    model = rate_model([0.0, 1.0, 1.0])
    rng = np.random.default_rng(1)
    z = torch.tensor(rng.integers(-6, 7, (2, 3, *size)), dtype=torch.float32)
    found = model.bits(z)
    for c, predicted in enumerate([False, True, True]):
        floor, slope = (F.softplus(20 * p[c]).item() for p in (model.scale_floor, model.slope))
        for n in range(2):
            expected = reference_bits(z[n, c].tolist(), predicted, floor, slope)
            np.testing.assert_allclose(found[n, c].detach().numpy(), expected, rtol=2e-4, atol=2e-4)
    assert model(z).item() == pytest.approx(found.sum().item())


def test_neighbours_by_hand() -> None:
    z = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4)  # 1 2 3 4 / 5 6 7 8 / 9 10 11 12
    names = ("west", "west2", "north", "north_west", "north_east")
    found = dict(zip(names, (t[0, 0].tolist() for t in neighbours(z)), strict=True))
    assert found["west"] == [[0, 1, 2, 3], [1, 5, 6, 7], [5, 9, 10, 11]]
    assert found["west2"] == [[0, 0, 1, 2], [1, 1, 5, 6], [5, 5, 9, 10]]
    assert found["north"] == [[0, 1, 2, 3], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert found["north_west"] == [[0, 1, 2, 3], [1, 1, 2, 3], [5, 5, 6, 7]]
    assert found["north_east"] == [[0, 1, 2, 3], [2, 3, 4, 4], [6, 7, 8, 8]]


@pytest.mark.parametrize("size", [(4, 5), (1, 5), (5, 1)])
def test_no_bit_depends_on_a_later_symbol(size: tuple[int, int]) -> None:
    model = rate_model([0.0, 1.0])
    rng = np.random.default_rng(2)
    count_ = size[0] * size[1]
    z = torch.tensor(rng.integers(-5, 6, (1, 2, *size)), dtype=torch.float32)
    with torch.no_grad():
        before = model.bits(z).reshape(2, count_)
        for position in range(count_):
            changed = z.reshape(1, 2, count_).clone()
            changed[:, :, position:] += torch.tensor(rng.integers(7, 20, (1, 2, count_ - position)))
            after = model.bits(changed.reshape(z.shape)).reshape(2, count_)
            assert torch.equal(after[:, :position], before[:, :position])
            assert (after[:, position] != before[:, position]).all()


def test_choose_predicts_smooth_channels() -> None:
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:12, :16]
    channels = {
        "plane": (x + 2 * y, 1.0),
        "falling": (-3 * x - y, 1.0),
        "one level": (np.full_like(x, 9), 1.0),
        "noise": (rng.integers(-9, 10, x.shape), 0.0),
        "sparse": (np.where(rng.random(x.shape) < 0.05, 5, 0), 0.0),
        "nothing": (np.zeros_like(x), 0.0),
    }
    model = LaplaceRateModel(len(channels))
    assert not model.predicted.any()
    z = torch.tensor(np.stack([channel for channel, _ in channels.values()])[None], dtype=torch.float32)
    bits_without = model.bits(z).sum((0, 2, 3))
    model.choose(z)
    found = dict(zip(channels, model.predicted.flatten().tolist(), strict=True))
    assert found == {name: predicted for name, (_, predicted) in channels.items()}
    assert model.predicted.shape == (len(channels), 1, 1)
    # What is chosen is cheaper, and it travels with the weights.
    assert (model.bits(z).sum((0, 2, 3)) < bits_without)[:3].all()
    assert torch.equal(model.state_dict()["predicted"], model.predicted)
    # It counts over all the frames: one of noise against one smooth one that is far larger.
    model = LaplaceRateModel(1)
    model.choose(torch.cat([z[:, 3:4], 10 * z[:, :1]]))
    assert model.predicted.item() == 1.0


@pytest.mark.parametrize("predicted", [0.0, 1.0])
def test_rate_model_is_a_distribution_and_finite_far_out(predicted: float) -> None:
    # The probabilities of all the values that the last symbol could have, behind the same ones, sum to one.
    model = rate_model([predicted])
    values = torch.arange(-400.0, 401.0)
    for size in ((1, 1), (3, 4)):
        before = np.random.default_rng(5).integers(-6, 7, size)
        z = torch.tensor(before, dtype=torch.float32).repeat(len(values), 1, 1, 1)
        z[:, 0, -1, -1] = values
        bits = model.bits(z)[:, 0, -1, -1]
        assert torch.exp2(-bits.double()).sum().item() == pytest.approx(1.0, abs=1e-4)
    far = torch.tensor([[[[-128.0, 127.0], [-128.0, 127.0]]]], requires_grad=True)
    total = model(far)
    total.backward()
    assert torch.isfinite(total)
    for tensor in (far, *model.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_segmenters_share_trunk_and_head_and_stay_compact() -> None:
    rgb, latent = registry.create("compact-rgb"), registry.create("compact-latent", channels=32)
    shapes = {n: p.shape for n, p in rgb.trunk.state_dict().items()}
    assert shapes == {n: p.shape for n, p in latent.trunk.state_dict().items()}
    for module in (rgb, latent):
        assert 1e6 <= sum(p.numel() for p in module.parameters()) <= 3e6
    frame = count(rgb, (1, 3, 360, 480)).macs
    from_latent = count(latent, (1, 32, 45, 60)).macs
    assert from_latent < frame  # the saving before any decoding is counted
    # It is a small one: the entries cost nearly the same, so that what the pair's times differ by is the decoding.
    entries = [count(m.entry, shape).macs for m, shape in ((rgb, (1, 3, 360, 480)), (latent, (1, 32, 45, 60)))]
    assert 0.8 * entries[0] < entries[1] < entries[0]


@pytest.mark.parametrize("size", [(8, 8), (24, 72), (56, 104)])
def test_segmenter_shapes(size: tuple[int, int]) -> None:
    rgb, latent = registry.create("compact-rgb", classes=5).eval(), registry.create("compact-latent", channels=4).eval()
    with torch.no_grad():
        assert rgb(torch.rand(1, 3, *size)).shape == (1, 5, size[0] // 2, size[1] // 2)
        assert latent(torch.rand(1, 4, size[0] // 8, size[1] // 8)).shape == (1, 11, size[0] // 2, size[1] // 2)
