"""The loss of a codec with learned centres: entropy, gradients and steering, against NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_runs import frames
from numpy.typing import NDArray
from torch import Tensor, nn

import latentseg.training.soft_to_hard as module
from latentseg.errors import ArtifactError, UsageError
from latentseg.models.torfason_codec import CentreQuantiser, TorfasonCodec
from latentseg.training.evaluate import coded_bpp
from latentseg.training.received import requantise
from latentseg.training.soft_to_hard import GAIN, MEASURED, EntropyDistortion, measure_rate, measured_frames
from latentseg.training.train_codec import CodecConfig

CENTRES = [-1.7, 0.4, -0.3, 2.2, 0.9]


def quantiser(sigma: float = 1.3) -> CentreQuantiser:
    """Five uneven centres, in no order, in float64."""
    found = CentreQuantiser(5, sigma).double()
    with torch.no_grad():
        found.centres.copy_(torch.tensor(CENTRES))
    return found


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1.5, shape))


def nearest(z: NDArray[Any]) -> NDArray[np.int64]:
    return np.abs(z[..., None] - np.array(CENTRES)).argmin(-1)


def soft_shares(z: NDArray[Any], centres: NDArray[Any], sigma: float = 1.3) -> NDArray[Any]:
    e = np.exp(-sigma * (z[..., None] - centres) ** 2)
    return e / e.sum(-1, keepdims=True)


def slope(of: Callable[[NDArray[Any]], float], at: NDArray[Any], step: float = 1e-6) -> NDArray[Any]:
    """Central differences of a scalar function, an element at a time."""
    found = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        moved = at.copy()
        moved[index] += step
        above = of(moved)
        moved[index] -= 2 * step
        found[index] = (above - of(moved)) / (2 * step)
    return found


def test_what_goes_forward_is_the_nearest_centre_and_its_entropy_is_the_histograms() -> None:
    z = latents(3, 2, 5, 7)
    received, shares = quantiser().assign(z)
    index = nearest(z.numpy())
    np.testing.assert_allclose(received.detach().numpy(), np.array(CENTRES)[index], atol=1e-6)
    np.testing.assert_allclose(shares.detach().numpy(), np.eye(5)[index], atol=1e-12)
    counts = np.bincount(index.ravel(), minlength=5) / index.size
    expected = -sum(p * math.log2(p) for p in counts if p)
    assert CentreQuantiser.entropy(shares).item() == pytest.approx(expected, rel=1e-6)


def test_entropy_of_one_level_and_of_all_alike() -> None:
    one_hot = torch.eye(4)
    assert CentreQuantiser.entropy(one_hot[[2, 2, 2]]).item() == pytest.approx(0.0, abs=1e-4)
    assert CentreQuantiser.entropy(one_hot).item() == pytest.approx(2.0)


def test_gradients_are_those_of_the_soft_assignment() -> None:
    z, weight = latents(1, 2, 2, 3), latents(1, 2, 2, 3, seed=1).numpy()
    net = quantiser()
    z.requires_grad_()
    received, _ = net.assign(z)
    (received * torch.from_numpy(weight)).sum().backward()
    at, centres = z.detach().numpy(), net.centres.detach().numpy().copy()
    expected = slope(lambda v: float((weight * (soft_shares(v, centres) * centres).sum(-1)).sum()), at)
    np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-6)  # type: ignore[union-attr]
    expected = slope(lambda c: float((weight * (soft_shares(at, c) * c).sum(-1)).sum()), centres)
    np.testing.assert_allclose(net.centres.grad.numpy(), expected, atol=1e-6)  # type: ignore[union-attr]


def test_the_entropys_gradient_is_the_soft_histograms() -> None:
    """H has its slope at the hard histogram, and the histogram moves as the soft shares do."""
    z = latents(1, 3, 4, 5).requires_grad_()
    net = quantiser()
    CentreQuantiser.entropy(net.assign(z)[1]).backward()
    at, centres = z.detach().numpy(), net.centres.detach().numpy()
    counts = np.bincount(nearest(at).ravel(), minlength=5) / at.size
    assert counts.min() > 0
    weight = -(np.log2(counts) + 1 / math.log(2))
    expected = slope(lambda v: float((soft_shares(v, centres).reshape(-1, 5).mean(0) * weight).sum()), at)
    np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-7)  # type: ignore[union-attr]


class Doubling(nn.Module):
    """A codec whose latent is twice the image, at stride 1, with centres 0, 1 and 2."""

    stride, channels = 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.quantiser = CentreQuantiser(3)
        with torch.no_grad():
            self.quantiser.centres.copy_(torch.tensor([0.0, 1.0, 2.0]))

    def compress(self, x: Tensor) -> Tensor:
        return x * 2

    def decompress(self, z: Tensor) -> Tensor:
        return z / 2


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_loss_by_hand(target: float) -> None:
    x = torch.tensor([0.1, 0.4, 0.6, 1.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)  # symbols 0, 1, 1, 2
    state = {"target_entropy": target, "smooth_entropy": 1.0, "measured_bpp": 0.25}
    loss, figures = EntropyDistortion(Doubling(), [], 0.3, 200.0, state, 0.5)(x, bf16=False, steer=False)
    mse = (0.1**2 + 0.1**2 + 0.1**2 + 0.0) / 4
    excess = max(1.5 - target, 0.0)  # of 1/4, 1/2, 1/4
    assert loss.item() == pytest.approx(0.5 * (mse * 255**2 + 200 * excess + 0.05 * 5), rel=1e-5)
    assert figures == pytest.approx(
        {"psnr": -10 * math.log10(mse), "entropy": 1.5, "target_entropy": target, "measured_bpp": 0.25}, rel=1e-5
    )
    # The batches' entropy is followed, a tenth of the way at a time.
    assert state == pytest.approx({"target_entropy": target, "smooth_entropy": 1.05, "measured_bpp": 0.25})


@pytest.mark.parametrize(
    ("measured", "before", "after"),
    [
        (0.6, 1.4, 1.4 * 0.5**GAIN),  # too much is spent: H_t sinks
        (0.25, 1.4, 1.4 * 1.2**GAIN),  # too little: it rises
        (0.3, 1.4, 1.4),
        (0.6, 0.7, 1.35 * 0.5**GAIN),  # it stays near the entropy that there is, 1.5
        (0.6, 3.0, 1.65 * 0.5**GAIN),
        (0.6, 0.0, 1.5 * 0.5**GAIN),  # at first it is set by what the symbols have
        (1e-6, 1.0, math.log2(3)),  # no more than the centres can carry
        (1e9, 1.0, 0.05),
    ],
)
def test_steering_moves_the_target_towards_the_rate(
    monkeypatch: pytest.MonkeyPatch, measured: float, before: float, after: float
) -> None:
    monkeypatch.setattr(module, "measure_rate", lambda codec, frames: (measured, 1.5 if before == 0 else 9.0))
    codec = Doubling().train()
    state = {"target_entropy": before, "smooth_entropy": 0.0 if before == 0 else 1.5, "measured_bpp": 9.0}
    EntropyDistortion(codec, [], 0.3, 1.0, state).steer()
    assert state == pytest.approx({**state, "target_entropy": after, "measured_bpp": measured})
    assert codec.training


def test_a_run_starts_with_the_target_of_the_weights_that_it_starts_from() -> None:
    assert EntropyDistortion.start(Doubling(), 0.3) == {
        "target_entropy": 0.0, "smooth_entropy": 0.0, "measured_bpp": 0.3,
    }  # fmt: skip
    trained = {"target_entropy": 1.4, "measured_bpp": 9.0, "steps": 3}
    assert EntropyDistortion.start(Doubling(), 0.3, trained)["target_entropy"] == 1.4


def tiny_codec(seed: int = 0) -> TorfasonCodec:
    torch.manual_seed(seed)
    return TorfasonCodec(4, width=8).eval()


def test_the_rate_is_of_real_bytes_and_the_entropy_of_all_symbols() -> None:
    codec, images = tiny_codec(), frames(3)
    found, entropy = measure_rate(codec, images)
    assert found == pytest.approx(coded_bpp(codec, images))
    with torch.no_grad():
        z = torch.cat([codec.compress(torch.from_numpy(f).permute(2, 0, 1)[None] / 255.0).flatten() for f in images])
    centres = codec.quantiser.centres.detach().numpy()
    counts = np.bincount(np.abs(z.numpy()[:, None] - centres).argmin(1), minlength=6) / len(z)
    assert entropy == pytest.approx(-sum(p * math.log2(p) for p in counts if p), abs=1e-4)


def test_the_codebook_holds_the_centres_in_ascending_order() -> None:
    codec = tiny_codec()
    with torch.no_grad():
        codec.quantiser.centres.copy_(torch.tensor([0.5, -1.0, 3.0, 0.0, 1.0, -2.0]))
    assert codec.scaling == ("codebook", 0.0, 0.0, (-2.0, -1.0, 0.0, 0.5, 1.0, 3.0))
    # Whatever the order of the parameters, a value becomes its nearest centre.
    z = latents(1, 4, 3, 5).float()
    torch.testing.assert_close(requantise(z, codec.bits, codec.scaling), codec.quantised(z).detach())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.4])
def test_centres_that_are_no_codebook_are_refused(bad: float) -> None:
    codec = tiny_codec()
    with torch.no_grad():
        codec.quantiser.centres[2] = 0.4
        codec.quantiser.centres[0] = bad
    with pytest.raises(ArtifactError, match="expected different finite numbers"):
        _ = codec.scaling


def test_small_frames_are_measured_in_sheets() -> None:
    small = [np.full((64, 48, 3), i % 256, np.uint8) for i in range(1000)]
    found = measured_frames(small)
    assert [sheet.shape for sheet in found] == [(512, 480, 3)] * 4
    assert [sheet[0, 0, 0] for sheet in found] == [0, 250 % 256, 500 % 256, 750 % 256]
    shown = [int(value) for sheet in found for value in sheet[::64, ::48, 0].ravel()]
    assert shown == [1000 * k // 320 % 256 for k in range(320)]
    assert [f.shape for f in measured_frames(frames(3))] == [(40, 56 * 3, 3)]  # all there are
    large = [np.zeros((360, 480, 3), np.uint8)] * 9
    assert [f.shape for f in measured_frames(large)] == [(360, 480, 3)] * 4
    mixed = [small[0], *large]
    assert {f.shape for f in measured_frames(mixed)} == {(64, 48, 3), (360, 480, 3)}


def test_one_odd_image_does_not_decide_what_is_measured() -> None:
    alike = [np.zeros((375, 500, 3), np.uint8)] * 4000
    odd = np.zeros((100, 120, 3), np.uint8)
    for images in ([odd, *alike], [*alike, odd], alike):
        assert len(measured_frames(images)) == MEASURED
    small = [np.zeros((64, 64, 3), np.uint8)] * 300
    assert [frame.shape for frame in measured_frames(small)] == [(512, 512, 3)] * MEASURED


@pytest.mark.parametrize("beta", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(UsageError, match="beta is"):
        CodecConfig(target_bpp=0.3, beta=beta)
