"""What a receiver gets, at many rates: levels drawn, quantisation against the stream's own, JPEG against Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_runs import (
    CODEC,
    NARROW,
    SEGMENTER,
    TINY,
    Counted,
    KilledError,
    PlainCodec,
    frames,
    labels,
    loop,
    rows,
    weights,
)
from PIL import Image

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import UsageError
from latentseg.kernels import entropy
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.augment import to_float
from latentseg.training.evaluate import decoded_by
from latentseg.training.received import (
    Encoder,
    JpegRoundTrip,
    RoundTrip,
    check_levels,
    check_step_range,
    check_steps,
    draw_levels,
    requantise,
)
from latentseg.training.train_codec import CodecConfig, RateDistortion, train_codec
from latentseg.training.train_joint import JointConfig, train_joint
from latentseg.training.train_segmenter import SegmenterConfig, train_segmenter

STEPS = (0.4, 2.5)


def tiny_codec(seed: int = 0) -> torch.nn.Module:
    """A codec with the PCA's start, whose latents span many symbols."""
    torch.manual_seed(seed)
    codec = registry.create("compact-codec", **TINY)
    codec.pca_init(torch.rand(400, 192, generator=torch.Generator().manual_seed(seed)))  # type: ignore[operator]
    return codec.eval()


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "spread"), [(1, 0), (2, 1), (5, 2), (8, 4)])
def test_half_of_a_batch_has_the_geometric_mean(count: int, spread: int) -> None:
    found = draw_levels((0.5, 4.5), count, np.random.default_rng(3))
    assert (found.shape, found.dtype) == ((count, 1, 1, 1), torch.float32)
    flat = found.flatten().tolist()
    assert flat[: count - spread] == [1.5] * (count - spread)
    drawn = flat[count - spread :]
    assert all(0.5 <= level <= 4.5 and level != 1.5 for level in drawn)
    assert len(set(drawn)) == spread
    assert flat == draw_levels((0.5, 4.5), count, np.random.default_rng(3)).flatten().tolist()
    assert spread == 0 or flat != draw_levels((0.5, 4.5), count, np.random.default_rng(4)).flatten().tolist()


def test_the_rest_is_uniform_in_the_logarithm() -> None:
    drawn = draw_levels((0.25, 64.0), 8000, np.random.default_rng(0)).flatten().numpy()[4000:]
    exponents = np.log2(drawn)
    counts, _ = np.histogram(exponents, bins=8, range=(-2, 6))
    assert counts.sum() == 4000
    assert np.abs(counts - 500).max() < 110  # five standard deviations of a bin


def test_of_one_level_nothing_is_drawn() -> None:
    rng = np.random.default_rng(0)
    assert draw_levels((1.7, 1.7), 3, rng).flatten().tolist() == [np.float32(1.7)] * 3
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_levels_that_cannot_be() -> None:
    for levels in ((0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0), (1.0, math.nan)):
        with pytest.raises(UsageError, match="steps wants 0 < LO <= HI"):
            check_levels(levels, "the range of quantisation steps")
        with pytest.raises(UsageError):
            SegmenterConfig(step_range=levels)
        with pytest.raises(UsageError):
            CodecConfig(step_range=levels)
    for quality in ((0, 50), (5, 101), (60, 50)):
        with pytest.raises(UsageError, match="JPEG"):
            SegmenterConfig(jpeg_quality=quality)
    other = registry.create("kakaiya-codec-d1")
    check_steps(other, (1.0, 1.0))
    with pytest.raises(UsageError, match=r"from 0\.4 to 2\.5 for a codec of scaling '(channel|tensor)'"):
        check_steps(other, STEPS)
    check_steps(tiny_codec(), STEPS)
    for bad in ((1e-5, 1.0), (1.0, 1001.0)):
        with pytest.raises(UsageError, match=r"expected 0\.001 to 1000"):
            check_steps(tiny_codec(), bad)
    check_steps(tiny_codec(), (2.0, 2.0))  # one step to score at, but nothing to learn from alone
    with pytest.raises(UsageError, match="expected a range with 1 in it"):
        check_step_range(tiny_codec(), (2.0, 4.0))


# --- quantisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.4, 0.6, 1.0, 1.6, 2.5])
def test_requantise_with_a_step_is_a_streams_of_that_range(step: float) -> None:
    z = np.random.default_rng(0).normal(0, 40, (2, 3, 5, 7)).astype(np.float32)
    z[0, 0, 0, :4] = (-1000, 1000, -128 * step, 127 * step)  # beyond the range, and its ends
    scaling = Scaling("fixed", step * -128.0, step * 127.0)
    header = StreamHeader(bytes(32), (3, 5, 7), 8, scaling)
    expected = np.stack([entropy.decode_latent(entropy.encode_latent(latent, header), header) for latent in z])
    found = requantise(torch.from_numpy(z), 8, ("fixed", -128.0, 127.0), step).numpy()
    np.testing.assert_allclose(found, expected, atol=step * 1e-4)
    # What both are: whole numbers of steps, the nearest ones within the range.
    whole = np.rint(z.astype(np.float64) / step).clip(-128, 127)
    np.testing.assert_allclose(expected / step, whole, atol=1e-4)


def test_every_sample_has_its_own_step() -> None:
    z = torch.from_numpy(np.random.default_rng(1).normal(0, 30, (3, 4, 5, 6)).astype(np.float32))
    step = torch.tensor([0.4, 1.0, 2.5])[:, None, None, None]
    together = requantise(z, 8, ("fixed", -128.0, 127.0), step)
    codec = tiny_codec()
    learned = codec.quantised(z.requires_grad_(), step)  # type: ignore[operator]
    for sample, one in enumerate(step.flatten().tolist()):
        alone = requantise(z[sample : sample + 1], 8, ("fixed", -128.0, 127.0), one)
        torch.testing.assert_close(together[sample : sample + 1], alone, rtol=0, atol=1e-5)
    # In training the codec rounds with the gradient of the identity, to the same values.
    torch.testing.assert_close(learned, together, rtol=0, atol=2e-5)
    learned.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))


def test_an_rgb_network_gets_what_the_decoder_makes_of_the_stream() -> None:
    codec, images = tiny_codec(), frames(3, 21, 37)  # sides that the stride does not divide
    x = torch.stack([to_float(frame) for frame in images])
    step = torch.tensor([0.5, 1.0, 2.0])[:, None, None, None]
    received = RoundTrip(codec)(x, step)
    assert received.shape == x.shape
    for frame, image, one in zip(images, received, step.flatten().tolist(), strict=True):
        expected = decoded_by(codec, one)(frame).astype(np.int16)
        assert np.abs((image * 255).round().permute(1, 2, 0).numpy() - expected).max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in RoundTrip(codec)(x[:1].expand(3, -1, -1, -1), step)}) == 3
    assert torch.equal(Encoder(None)(x, step), x)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_rate_distortion_over_several_steps_by_hand() -> None:
    x = torch.rand(5, 3, 4, 2, generator=torch.Generator().manual_seed(0)) * 7
    low, high = 0.5, 4.5  # the mean is 1.5
    levels = draw_levels((low, high), 5, np.random.default_rng(7)).flatten().double().numpy()
    assert levels[:3].tolist() == [1.5] * 3
    symbols = np.rint(x.double().numpy() * 2 / levels[:, None, None, None])
    errors = ((symbols * levels[:, None, None, None] / 2 - x.double().numpy()) ** 2).mean((1, 2, 3))
    bpps = np.abs(symbols).sum((1, 2, 3)) / 8
    expected = (errors * (1.5 / levels) ** 2).mean() * 255**2 * math.exp(-2.0) + bpps.mean()
    state = {"log_lambda": -2.0, "smooth_bpp": 3.0}
    rate = RateDistortion(PlainCodec(), 2.0, state, (low, high))
    loss, figures = rate(x, np.random.default_rng(7), bf16=False, steer=False)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # What steers, and what is shown, is of the samples at the mean alone.
    assert figures["bpp"] == pytest.approx(bpps[:3].mean(), rel=1e-5)
    assert figures["psnr"] == pytest.approx(-10 * math.log10(errors[:3].mean()), rel=1e-4)
    assert state == pytest.approx({"log_lambda": -2.0, "smooth_bpp": 0.98 * 3.0 + 0.02 * bpps[:3].mean()})


# --- JPEG -------------------------------------------------------------------------------------------------------------


def test_jpeg_is_pillows() -> None:
    images = [np.random.default_rng(i).integers(0, 256, (19, 35, 3), np.uint8) for i in range(3)]
    images[0] = frames(1, 19, 35)[0]
    x = torch.stack([to_float(image) for image in images])
    qualities = torch.tensor([7.4, 50.0, 94.6])[:, None, None, None]
    found = JpegRoundTrip()(x, qualities)
    assert (found.shape, found.dtype) == (x.shape, torch.float32)
    for image, received, quality in zip(images, found, (7, 50, 95), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
        expected = np.asarray(Image.open(file))
        np.testing.assert_array_equal((received * 255).numpy().transpose(1, 2, 0).round(), expected)
    assert torch.equal(JpegRoundTrip()(x, 50.0)[1], found[1])


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codec")
    return train_codec("compact-codec", frames(3), out, CODEC, loop(3), options=TINY, progress=False)


def test_what_does_not_go_together_is_refused(tmp_path: Path, codec: Path) -> None:
    def segmenter(network: str, config: SegmenterConfig, **options: Any) -> None:
        train_segmenter(network, frames(1), labels(1), 2, tmp_path / "x", config, loop(1), progress=False, **options)

    ranged, jpeg = (SegmenterConfig(size=(24, 32), batch=2, **levels) for levels in (
        {"step_range": STEPS}, {"jpeg_quality": (5, 50)},
    ))  # fmt: skip
    cases: list[tuple[Callable[[], None], str]] = [
        (lambda: segmenter("compact-rgb", ranged), "a range of quantisation steps, found no codec"),
        (lambda: segmenter("compact-rgb", jpeg, decoded_by=codec), "--decoded-by and --jpeg-quality: a network"),
        (lambda: segmenter("compact-latent", jpeg, codec=codec), "--codec and --jpeg-quality: a network learns"),
        (lambda: segmenter("compact-latent", ranged, codec=codec, decoded_by=codec), "--codec and --decoded-by"),
        (lambda: segmenter("compact-rgb", SEGMENTER, codec=codec), "it takes no codec"),
        (lambda: segmenter("compact-latent", SEGMENTER, decoded_by=codec), "it needs codec"),
    ]
    for run, message in cases:
        with pytest.raises(UsageError, match=message):
            run()
    plain = CodecConfig(patch=32, batch=2, step_range=STEPS)
    with pytest.raises(UsageError, match="for a codec of scaling '"):
        train_codec("kakaiya-codec-d1", frames(1), tmp_path / "x", plain, loop(1), progress=False)
    assert not (tmp_path / "x").exists()


def _codec(out: Path, images: Any, codec: Path, resume: bool) -> Path:
    config = CodecConfig(target_bpp=0.5, patch=32, batch=4, pca_patches=400, step_range=STEPS)
    return train_codec("compact-codec", images, out, config, loop(6), options=TINY, resume=resume, progress=False)


def _segmenter(network: str, levels: dict[str, Any], role: str = "") -> Callable[..., Path]:
    def run(out: Path, images: Any, codec: Path, resume: bool) -> Path:
        config = SegmenterConfig(size=(24, 32), batch=4, **levels)
        more = {role: codec} if role else {}
        return train_segmenter(
            network, images, labels(3), 2, out, config, loop(6), options=NARROW, resume=resume, progress=False, **more
        )

    return run


def _joint(out: Path, images: Any, codec: Path, resume: bool) -> Path:
    crops = CodecConfig(target_bpp=0.5, patch=32, batch=2, step_range=STEPS)
    config = SegmenterConfig(size=(24, 32), batch=2)
    args = ("compact-latent", images, labels(3), 2, out, config, crops, JointConfig(), loop(6))
    return train_joint(*args, codec=codec, options=NARROW, resume=resume, progress=False)[1]


@pytest.mark.parametrize(
    ("train", "per_step", "noted"),
    [
        (_codec, 4, ("codec", "step_range", [0.4, 2.5])),
        (_segmenter("compact-latent", {"step_range": STEPS}, "codec"), 4, ("segmenter", "step_range", [0.4, 2.5])),
        (_segmenter("compact-rgb", {"step_range": STEPS}, "decoded_by"), 4, ("segmenter", "step_range", [0.4, 2.5])),
        (_segmenter("compact-rgb", {"jpeg_quality": (5, 60)}), 4, ("segmenter", "jpeg_quality", [5, 60])),
        (_joint, 4, ("crops", "step_range", [0.4, 2.5])),
    ],
    ids=["codec", "latent", "decoded", "jpeg", "joint"],
)
def test_a_run_over_levels_and_its_resume_are_the_same(
    tmp_path: Path, codec: Path, train: Callable[..., Path], per_step: int, noted: tuple[str, str, list[float]]
) -> None:
    whole = train(tmp_path / "a", frames(3), codec, False)
    before = Counted(frames(3))
    if train is _codec:  # its start looks at the frames as well
        short = CodecConfig(target_bpp=0.5, patch=32, batch=4, pca_patches=400, step_range=STEPS)
        train_codec("compact-codec", before, tmp_path / "c", short, loop(4), options=TINY, progress=False)
    last = before.taken + 3 if before.taken else 5 * per_step + 3
    with pytest.raises(KilledError):
        train(tmp_path / "b", Counted(frames(3), last=last), codec, False)
    assert [row["step"] for row in rows(tmp_path / "b")] == [2, 4]
    resumed = train(tmp_path / "b", frames(3), codec, True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    settings = checkpoint.load_weights(whole).facts["settings"]
    section, key, value = noted
    assert settings[section][key] == value
    if "decoded_by" in settings:
        assert (settings["decoded_by"], settings["codec"]) == (checkpoint.load_weights(codec).content_id, "")


def test_levels_change_what_is_learned_and_one_level_does_not(tmp_path: Path, codec: Path) -> None:
    def run(name: str, **levels: Any) -> dict[str, torch.Tensor]:
        config = SegmenterConfig(size=(24, 32), batch=4, **levels)
        args = ("compact-latent", frames(3), labels(3), 2, tmp_path / name, config, loop(2))
        return weights(train_segmenter(*args, codec=codec, options=NARROW, progress=False))

    plain, same, ranged = run("plain"), run("same", step_range=(1.0, 1.0)), run("ranged", step_range=STEPS)
    assert all(torch.equal(same[name], value) for name, value in plain.items())
    assert not torch.equal(ranged["trunk.classifier.weight"], plain["trunk.classifier.weight"])
