"""Runs end to end on tiny data: resume equals an uninterrupted run, states and weights survive, misuse is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

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
from torch import Tensor, nn
from torch.nn import functional as F

from latentseg.errors import ArtifactError, InputError, OutputError, UsageError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.augment import to_float
from latentseg.training.loop import LoopConfig, Part, Run, learning_rate, step_rng
from latentseg.training.received import requantise
from latentseg.training.train_codec import CodecConfig, RateDistortion, initialise, train_codec
from latentseg.training.train_segmenter import (
    SegmentationLoss,
    SegmenterConfig,
    check_fit,
    class_weights,
    train_segmenter,
)


def test_codec_run_and_resume_are_the_same(tmp_path: Path) -> None:
    whole = train_codec("compact-codec", frames(3), tmp_path / "a", CODEC, loop(6), options=TINY, progress=False)
    # The same run, killed after the checkpoint at step 4 (its loop raises), then resumed.
    killed, counted = tmp_path / "b", Counted(frames(3))
    train_codec("compact-codec", counted, tmp_path / "count", CODEC, loop(4), options=TINY, progress=False)
    mortal = Counted(frames(3), last=counted.taken + 3)  # in step 6: step 5 is lost, the checkpoint of step 4 is not
    with pytest.raises(KilledError):
        train_codec("compact-codec", mortal, killed, CODEC, loop(6), options=TINY, progress=False)
    assert not (killed / "model.safetensors").exists()
    assert [row["step"] for row in rows(killed)] == [2, 4]
    resumed = train_codec("compact-codec", frames(3), killed, CODEC, loop(6), options=TINY, resume=True, progress=False)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_the_start_chooses_which_channels_are_predicted() -> None:
    codec = registry.create("compact-codec", **TINY)
    initialise(codec, frames(3), CODEC, seed=0)
    found = codec.rate_model.predicted.flatten()  # type: ignore[union-attr]
    assert found[0] == 1.0  # the brightness of ramps; without the choice it would be 0
    # The same choice on whole frames, where a channel's errors are then smaller.
    with torch.no_grad():
        z = codec.compress(torch.stack([to_float(f) for f in frames(3)])).round()  # type: ignore[operator]
        codec.rate_model.choose(z)  # type: ignore[operator, union-attr]
    assert torch.equal(codec.rate_model.predicted.flatten()[:2], found[:2])  # type: ignore[union-attr]
    # Frames of one single patch have nothing to predict from.
    initialise(codec, frames(600, 8, 15), CODEC, seed=0)
    assert not codec.rate_model.predicted.any()  # type: ignore[operator, union-attr]


def test_existing_run_and_changed_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="nothing to resume"):
        train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=TINY, resume=True, progress=False)
    train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=TINY, progress=False)
    with pytest.raises(UsageError, match="already holds a run") as caught:
        train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=TINY, progress=False)
    assert "--resume" in caught.value.hint
    with pytest.raises(ArtifactError, match=r"other settings: loop steps was 2, asked for 3$"):
        train_codec("compact-codec", frames(2), out, CODEC, loop(3), options=TINY, resume=True, progress=False)
    wider = {**TINY, "channels": 6}
    with pytest.raises(ArtifactError, match="size mismatch"):
        train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=wider, resume=True, progress=False)
    with pytest.raises(ArtifactError, match="do not fit network 'compact-codec'"):
        train_codec("compact-codec", frames(2), tmp_path / "b", CODEC, loop(2), options=wider, init=out, progress=False)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"seed": -1}, {"warmup": -1}, {"interval": 0}, {"lr": 0.0}, {"lr": float("nan")}]
)
def test_loops_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        loop(**{"steps": 2, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0.0, -1.0, 24.0, float("nan")])
def test_target_rates_that_make_no_sense(target: float) -> None:
    with pytest.raises(UsageError, match="bpp, expected"):
        CodecConfig(target_bpp=target)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"crops of 33, expected a multiple .* 8"):
        train_codec("compact-codec", frames(1), tmp_path / "a", CodecConfig(target_bpp=0.5, patch=33), loop(1))
    with pytest.raises(InputError, match="a frame of 5x56, expected at least 8x8"):
        train_codec("compact-codec", [frames(1)[0][:5]], tmp_path / "b", CODEC, loop(1), options=TINY)
    with pytest.raises(UsageError, match="canvas of 24x33"):
        train_segmenter("compact-rgb", frames(1), labels(1), 2, tmp_path / "c", SegmenterConfig((24, 33)), loop(1))
    void = [np.full_like(label, 255) for label in labels(2)]
    with pytest.raises(InputError, match="no pixel of any label"):
        train_segmenter("compact-rgb", frames(2), void, 2, tmp_path / "d", SEGMENTER, loop(1))


def test_segmenter_must_fit_the_codecs_latents() -> None:
    codec, other = registry.create("compact-codec", **TINY), registry.create("kakaiya-codec-d1")
    segmenter = registry.create("compact-latent", channels=4, **NARROW)
    check_fit(segmenter, codec, "compact-latent")
    check_fit(registry.create("kakaiya-latent-d1"), other, "kakaiya-latent-d1")
    with pytest.raises(ArtifactError, match="1/4 resolution, 'compact-latent' expects 1/8"):
        check_fit(segmenter, other, "compact-latent")
    with pytest.raises(ArtifactError, match="does not take latents of 4 channels"):
        check_fit(registry.create("compact-latent", channels=5, **NARROW), codec, "compact-latent")


def test_checkpoint_that_cannot_be_written_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.ones(1)}, {})
    (tmp_path / "state.safetensors.tmp").mkdir()
    with pytest.raises(OutputError, match="cannot write checkpoint"):
        checkpoint.save(path, {"a": torch.zeros(1)}, {})
    assert checkpoint.load(path)[0]["a"].item() == 1
    with pytest.raises(UsageError, match="is a file"):
        train_codec("compact-codec", frames(1), path, CODEC, loop(1), options=TINY)


def test_target_rate_steers_the_distortion_weight(tmp_path: Path) -> None:
    last = {}
    for target in (0.05, 1.5):
        config = CodecConfig(target_bpp=target, patch=32, batch=2, pca_patches=400)
        out = tmp_path / str(target)
        train_codec(
            "compact-codec", frames(4), out, config, loop(40, interval=20, lr=2e-3), options=TINY, progress=False
        )
        last[target] = rows(out)[-1]
    assert last[0.05]["bpp"] < last[1.5]["bpp"]
    # 0.1 bpp is too much for the one, so its distortion must count for less, and too little for the other.
    assert last[0.05]["lambda"] < 0.003 < last[1.5]["lambda"]
    assert last[0.05]["psnr"] < last[1.5]["psnr"]


def test_rate_distortion_by_hand() -> None:
    x = torch.full((1, 3, 2, 2), 0.5)
    x[0, 0] = 0.6  # 1.2, rounded to 1, decoded to 0.5
    mse, bpp = 0.01 / 3, 12 / 4
    smooth = 0.98 * 2.0 + 0.02 * bpp
    # Far above the target and far below it the step is limited; near it, it is the error's.
    cases = (
        (1.0, False, 0.0),
        (1.0, True, -0.5 * 0.006),
        (9.0, True, 0.5 * 0.006),
        (2.1, True, 0.006 * (2.1 - smooth) / 2.1),
    )
    for target, steer, step in cases:
        state = {"log_lambda": 0.25, "smooth_bpp": 2.0}
        rng = np.random.default_rng(0)
        loss, figures = RateDistortion(PlainCodec(), target, state)(x, rng, bf16=False, steer=steer)
        assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state  # at one step nothing is drawn
        assert state == pytest.approx({"log_lambda": 0.25 + step, "smooth_bpp": smooth})
        weight = math.exp(0.25 + step)
        assert loss.item() == pytest.approx(mse * 255**2 * weight + bpp, rel=1e-5)
        assert figures == pytest.approx({"psnr": -10 * math.log10(mse), "bpp": bpp, "lambda": weight}, rel=1e-5)
    # A range of one step has no middle to be weighed against: 1.2 is two steps of a half, and comes out as before.
    rate = RateDistortion(PlainCodec(), 9.0, {"log_lambda": 0.25, "smooth_bpp": 2.0}, (0.5, 0.5))
    loss, figures = rate(x, np.random.default_rng(0), bf16=False, steer=False)
    assert loss.item() == pytest.approx(mse * 255**2 * math.exp(0.25) + 2 * bpp, rel=1e-5)
    assert figures["bpp"] == pytest.approx(2 * bpp)
    assert RateDistortion.start(0.7) == {"log_lambda": math.log(0.003), "smooth_bpp": 0.7}
    assert RateDistortion.start(0.7, {"log_lambda": -4.0, "smooth_bpp": 9.0}) == {"log_lambda": -4.0, "smooth_bpp": 0.7}


@pytest.mark.parametrize("latent", [False, True])
def test_segmenter_learns(tmp_path: Path, latent: bool) -> None:
    codec = None
    if latent:
        codec = train_codec("compact-codec", frames(2), tmp_path / "c", CODEC, loop(2), options=TINY, progress=False)
    path = train_segmenter(
        "compact-latent" if latent else "compact-rgb", frames(3), labels(3), 2, tmp_path / "s", SEGMENTER,
        loop(30, interval=10, lr=5e-3), codec=codec, options=NARROW, progress=False,
    )  # fmt: skip
    log = rows(tmp_path / "s")
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    loaded = checkpoint.load_weights(path)
    assert loaded.options["classes"] == 2
    if codec is not None:
        assert loaded.options["channels"] == 4
        assert loaded.facts["settings"]["codec"] == checkpoint.load_weights(codec).content_id
    loaded.build()


def test_kind_and_codec_must_fit(tmp_path: Path) -> None:
    args = (frames(1), labels(1), 2, tmp_path / "x", SEGMENTER, loop(1))
    with pytest.raises(UsageError, match="not a segmenter"):
        train_segmenter("compact-codec", *args)
    with pytest.raises(UsageError, match="needs codec"):
        train_segmenter("compact-latent", *args)
    with pytest.raises(UsageError, match="not a codec"):
        train_codec("compact-rgb", frames(1), tmp_path / "x", CODEC, loop(1))
    with pytest.raises(UsageError, match="rate"):
        train_codec("kakaiya-codec-d1", frames(1), tmp_path / "x", CODEC, loop(1))


def test_checkpoints_that_lie(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")
    (tmp_path / "rubbish.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="cannot read checkpoint"):
        checkpoint.load(tmp_path / "rubbish.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "foreign.safetensors"))
    with pytest.raises(ArtifactError, match="not a latentseg checkpoint"):
        checkpoint.load(tmp_path / "foreign.safetensors")
    path = train_codec("compact-codec", frames(2), tmp_path / "run", CODEC, loop(2), options=TINY, progress=False)
    with pytest.raises(ArtifactError, match="expected rgb_segmenter"):
        checkpoint.load_weights(path, kinds=("rgb_segmenter",))
    with pytest.raises(ArtifactError, match="resume state"):
        checkpoint.load_weights(tmp_path / "run" / "state.safetensors")
    tensors, metadata = checkpoint.load(path)
    checkpoint.save_weights(tmp_path / "bad.safetensors", "compact-codec", {}, tensors, metadata["facts"])
    with pytest.raises(ArtifactError, match="do not fit"):
        checkpoint.load_weights(tmp_path / "bad.safetensors").build()


def test_content_id_names_the_weights() -> None:
    tensors = {"w": torch.arange(4.0), "b": torch.zeros(2)}
    first = checkpoint.content_id("n", {"x": 1}, tensors)
    assert first == checkpoint.content_id("n", {"x": 1}, dict(reversed(list(tensors.items()))))
    assert first != checkpoint.content_id("n", {"x": 2}, tensors)
    assert first != checkpoint.content_id("n", {"x": 1}, {**tensors, "b": torch.tensor([0.0, 1e-7])})


def test_requantise_is_the_streams_own(tmp_path: Path) -> None:
    from latentseg.kernels.dequantize import dequantize
    from latentseg.kernels.quantize import quantize, quantize_codebook

    z = torch.tensor(np.random.default_rng(0).normal(0, 3, (2, 3, 5, 7)), dtype=torch.float32)
    for bits in (1, 5, 8):
        fixed = requantise(z, bits, ("fixed", -4.0, 4.0)).numpy()
        per_tensor = requantise(z, bits, ("tensor", 0.0, 0.0)).numpy()
        per_channel = requantise(z, bits, ("channel", 0.0, 0.0)).numpy()
        for i, latent in enumerate(z.numpy()):
            for found, lo, hi in (
                (fixed[i], -4.0, 4.0),
                (per_tensor[i], latent.min(), latent.max()),
                (per_channel[i], latent.min((1, 2)), latent.max((1, 2))),
            ):
                expected = dequantize(quantize(latent, bits, lo, hi), bits, lo, hi)
                np.testing.assert_allclose(found, expected, atol=2e-6)
    centres = (-1.5, -0.25, 0.0, 0.125, 4.0, 7.0)
    midpoints = [0.5 * (a + b) for a, b in pairwise(centres)]  # exact: on one of them the lower centre is taken
    z[0, 0, 0, :5] = torch.tensor(midpoints)
    found = requantise(z, 3, ("codebook", 0.0, 0.0, centres))
    symbols = quantize_codebook(z.numpy(), centres)
    np.testing.assert_array_equal(found.numpy(), np.array(centres, np.float32)[symbols])
    assert found[0, 0, 0, :5].tolist() == list(centres[:5])
    constant = torch.full((1, 2, 3, 3), 1.25)
    assert torch.equal(requantise(constant, 8, ("tensor", 0.0, 0.0)), constant)


def test_schedule_and_step_generator() -> None:
    config = LoopConfig(steps=100, lr=1.0, warmup=10, final_lr_share=0.0)
    rates = [learning_rate(config, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert step_rng(1, 2).random() == step_rng(1, 2).random() != step_rng(1, 3).random()


def test_class_weights_by_hand() -> None:
    label = np.array([[0] * 16 + [1] * 4 + [2] * 1 + [255] * 9], np.uint8)
    assert class_weights([label], 3, 0.5).tolist() == pytest.approx([0.5, 1.0, 2.0])


@pytest.mark.parametrize("corners", [False, True])
def test_segmentation_loss_is_torchs(corners: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    logits, aux = torch.randn(2, 3, 4, 5, generator=rng), torch.randn(2, 3, 2, 3, generator=rng)
    target = torch.randint(0, 3, (2, 8, 10), generator=rng)
    target[torch.rand(target.shape, generator=rng) < 0.3] = 255
    weight = torch.tensor([0.3, 1.0, 4.0])
    loss = SegmentationLoss(SimpleNamespace(align_corners=corners), weight, 0.25)  # type: ignore[arg-type]

    def by_hand(out: Tensor) -> float:
        full = F.interpolate(out, size=(8, 10), mode="bilinear", align_corners=corners).double().numpy()
        log_share = full - np.log(np.exp(full).sum(1, keepdims=True))
        n, y, x = np.nonzero(target.numpy() != 255)
        classes = target.numpy()[n, y, x]
        share = weight.numpy()[classes]
        return float(-(share * log_share[n, classes, y, x]).sum() / share.sum())

    assert loss(logits, target).item() == pytest.approx(by_hand(logits), rel=1e-5)
    assert loss((logits, aux), target).item() == pytest.approx(by_hand(logits) + 0.25 * by_hand(aux), rel=1e-5)
    torchs = nn.CrossEntropyLoss(weight=weight, ignore_index=255)
    full = nn.Upsample(size=(8, 10), mode="bilinear", align_corners=corners)(logits)
    assert loss(logits, target).item() == torchs(full, target).item()
    # bfloat16 logits, as autocast gives them, are taken to float32 first.
    assert loss(logits.bfloat16(), target).item() == loss(logits.bfloat16().float(), target).item()


def test_parts_have_their_own_pace(tmp_path: Path) -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)})
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    parts = [Part(module["a"], 0.5), Part(module["b"], 0.0, lr_share=0.25)]
    config = loop(1, lr=0.1, warmup=0, clip_norm=1.0, weight_decay=9.0, ema=0.0)
    run = Run(tmp_path / "r", "pair", {}, module, config, {}, parts=parts)

    def losses(step: int, batch: int) -> tuple[Tensor, dict[str, float]]:
        # Gradients of 1e4 in the one part, of 1e-2 in the other: clipped together, the small ones would vanish.
        scales = {"a": 1e4, "b": 1e-2}
        return torch.stack([scales[n[0]] * p.sum() for n, p in module.named_parameters()]).sum(), {}

    run.train(int, losses, progress=False)
    found = module.state_dict()
    torch.testing.assert_close(module["b"].weight.grad, torch.full((3, 2), 1e-2))
    norms = [torch.linalg.vector_norm(p.grad).item() ** 2 for p in module["a"].parameters() if p.grad is not None]
    assert sum(norms) == pytest.approx(1.0, rel=1e-4)
    # The first step of Adam is the learning rate, whatever the gradient; decay acts on weights of its part alone.
    torch.testing.assert_close(found["a.weight"], start["a.weight"] * (1 - 0.1 * 0.5) - 0.1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["a.bias"], start["a.bias"] - 0.1, rtol=1e-4, atol=1e-5)
    for name in ("b.weight", "b.bias"):
        torch.testing.assert_close(found[name], start[name] - 0.025, rtol=1e-4, atol=1e-5)


def test_a_part_is_saved_as_a_network_of_its_own(tmp_path: Path) -> None:
    pair = nn.ModuleDict({"one": registry.create("compact-codec", **TINY), "one_more": nn.Linear(2, 2)})
    run = Run(tmp_path, "pair", {}, pair, loop(1), {"data": "d"}, extra={"log_lambda": -3.0})
    expected = {name: value.clone() for name, value in pair["one"].state_dict().items()}
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter += 1  # the average, which is what is saved, stays behind
    path = run.save_part("one.", tmp_path / "deep" / "er", "compact-codec", TINY, {"codec": "c"})
    loaded = checkpoint.load_weights(path.parent, kinds=("codec",))
    assert loaded.facts["log_lambda"] == -3.0
    assert (loaded.facts["settings"]["data"], loaded.facts["settings"]["codec"]) == ("d", "c")
    assert "codec" not in run.settings
    assert loaded.build().state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in expected.items())
