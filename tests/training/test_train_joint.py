"""Joint training on tiny data: what learns, what it learns from, how it resumes, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
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
    frames,
    labels,
    loop,
    rows,
    tiny_codec,
    weights,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import latentseg.training.train_joint as module
from latentseg.errors import ArtifactError, InputError, LatentsegError, UsageError
from latentseg.models import registry
from latentseg.models.compact import CompactSegmenter
from latentseg.training import checkpoint
from latentseg.training.train_codec import CodecConfig, RateDistortion
from latentseg.training.train_joint import JointConfig, Teacher, train_joint
from latentseg.training.train_segmenter import SegmenterConfig, train_segmenter


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that has trained until its lambda moved."""
    return tiny_codec(tmp_path_factory.mktemp("codec"), 6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB segmenter of two classes."""
    out = tmp_path_factory.mktemp("teacher")
    args = ("compact-rgb", frames(3), labels(3), 2, out, SEGMENTER, loop(4, lr=5e-3))
    return train_segmenter(*args, options=NARROW, progress=False)


def joint(
    folder: Path, codec: Path, steps: int, config: JointConfig | None = None, **changes: Any
) -> tuple[Path, Path]:
    """`train_joint` on the tiny data with the tiny settings, but for what is given."""
    options = {
        "network": "compact-latent", "images": frames(3), "labels": labels(3), "classes": 2, "segmenter": SEGMENTER,
        "crops": CODEC, "loop": loop(steps), **changes,
    }  # fmt: skip
    positional = [options.pop(k) for k in ("network", "images", "labels", "classes")]
    configs = [options.pop("segmenter"), options.pop("crops"), config or JointConfig(), options.pop("loop")]
    return train_joint(*positional, folder, *configs, codec=codec, progress=False, **options)


def changed(path: Path, before: Path) -> set[str]:
    """The tensors of two results of one network that differ."""
    old = weights(before)
    return {name for name, value in weights(path).items() if not torch.equal(value, old[name])}


def test_results_are_networks_that_belong_together(tmp_path: Path, codec: Path, teacher: Path) -> None:
    paths = joint(tmp_path / "run", codec, 4, teacher=teacher)
    assert paths == tuple(tmp_path / "run" / part / "model.safetensors" for part in ("codec", "segmenter"))
    trained = checkpoint.load_weights(tmp_path / "run" / "codec", kinds=("codec",))
    segmenter = checkpoint.load_weights(tmp_path / "run" / "segmenter", kinds=("latent_segmenter",))
    assert (trained.network, trained.options) == ("compact-codec", TINY)
    assert (segmenter.network, segmenter.options) == ("compact-latent", {"classes": 2, "channels": 4})
    z = trained.build().compress(torch.rand(1, 3, 24, 32))  # type: ignore[operator]
    assert segmenter.build()(z).shape == (1, 2, 12, 16)
    # The segmenter names the codec of this run, as `eval` and `export` want it, not the one that training began with.
    settings = segmenter.facts["settings"]
    assert settings["codec"] == trained.content_id
    assert settings["init"] == checkpoint.load_weights(codec).content_id != trained.content_id
    assert settings["teacher"] == checkpoint.load_weights(teacher).content_id
    assert settings["joint"] == vars(JointConfig())
    # Every weight of both has learned, the decoder's and the rate model's as well.
    parameters = {name for name, _ in trained.build().named_parameters()}
    assert changed(paths[0], codec) == parameters
    assert [row["step"] for row in rows(tmp_path / "run")] == [2, 4]
    assert rows(tmp_path / "run")[-1].keys() >= {"loss", "task", "taught", "psnr", "bpp", "lambda"}


def test_the_rate_goes_on_from_the_codecs_own(tmp_path: Path, codec: Path) -> None:
    joint(tmp_path, codec, 1)
    left = checkpoint.load_weights(codec).facts["log_lambda"]
    assert left != math.log(0.003)
    assert rows(tmp_path)[0]["lambda"] == pytest.approx(math.exp(left))
    # It may not move before the warm-up (of 2 steps) is over, and then it does.
    joint(tmp_path / "more", codec, 4, crops=replace(CODEC, target_bpp=3.0))
    first, second = (row["lambda"] for row in rows(tmp_path / "more"))
    assert first == pytest.approx(math.exp(left))
    assert second > first


def test_joint_run_and_resume_are_the_same(tmp_path: Path, codec: Path, teacher: Path) -> None:
    config = JointConfig(ramp=4)
    whole = joint(tmp_path / "a", codec, 6, config, teacher=teacher)
    # The same run, killed in step 6, after the checkpoint at step 4: a step takes two views and two crops.
    mortal = Counted(frames(3), last=5 * 4 + 3)
    with pytest.raises(KilledError):
        joint(tmp_path / "b", codec, 6, config, teacher=teacher, images=mortal)
    assert [row["step"] for row in rows(tmp_path / "b")] == [2, 4]
    assert not list(tmp_path.glob("b/**/model.safetensors"))
    resumed = joint(tmp_path / "b", codec, 6, config, teacher=teacher, resume=True)
    for one, other in zip(whole, resumed, strict=True):
        assert not changed(one, other)
        assert checkpoint.load_weights(one).content_id == checkpoint.load_weights(other).content_id
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / name)] for name in "ab"]
    assert logs[0] == logs[1]
    # Resumed once more, a finished run only writes its results again.
    resumed[1].unlink()
    assert (
        joint(tmp_path / "b", codec, 6, config, teacher=teacher, resume=True, images=Counted(frames(3), 0)) == resumed
    )
    assert not changed(resumed[1], whole[1])


def test_a_run_goes_on_from_another(tmp_path: Path, codec: Path, teacher: Path) -> None:
    first = joint(tmp_path / "first", codec, 2, teacher=teacher)
    # At a rate of almost 0 nothing is learned: what comes out is what it started with.
    still = {"loop": loop(1, lr=1e-12, warmup=0), "teacher": teacher}
    _, kept = joint(tmp_path / "kept", first[0], 1, JointConfig(codec_lr_share=0.0), init=first[1], **still)
    _, fresh = joint(tmp_path / "fresh", first[0], 1, JointConfig(codec_lr_share=0.0), **still)
    before, after, other = weights(first[1]), weights(kept), weights(fresh)
    trained = [name for name, _ in checkpoint.load_weights(kept).build().named_parameters()]
    for name in trained:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    assert any(not torch.equal(other[name], before[name]) for name in trained)
    settings = checkpoint.load_weights(kept).facts["settings"]
    assert settings["segmenter_init"] == checkpoint.load_weights(first[1]).content_id
    with pytest.raises(UsageError, match="one that has learned already"):
        joint(tmp_path / "both", codec, 2, JointConfig(hint_steps=1), teacher=teacher, init=first[1])
    with pytest.raises(ArtifactError, match="holds a rgb_segmenter"):
        joint(tmp_path / "rgb", codec, 1, init=teacher)
    assert not (tmp_path / "both").exists()
    assert not (tmp_path / "rgb").exists()


def test_without_a_rate_of_its_own_the_codec_stays(tmp_path: Path, codec: Path, teacher: Path) -> None:
    config = JointConfig(codec_lr_share=0.0)
    crops = replace(CODEC, step_range=(0.5, 2.0))
    paths = joint(tmp_path / "run", codec, 3, config, teacher=teacher, crops=crops)
    assert not changed(paths[0], codec)
    assert checkpoint.load_weights(paths[1]).facts["settings"]["crops"]["step_range"] == [0.5, 2.0]
    # The views' symbols have those steps: at one step alone the segmenter learns something else from the same views.
    _, plain = joint(tmp_path / "plain", codec, 3, config, teacher=teacher)
    assert changed(paths[1], plain)
    assert "step_range" not in checkpoint.load_weights(plain).facts["settings"]["crops"]


def test_a_run_is_not_resumed_as_another(tmp_path: Path, codec: Path, teacher: Path) -> None:
    joint(tmp_path / "run", codec, 2, teacher=teacher)
    with pytest.raises(UsageError, match="already holds a run"):
        joint(tmp_path / "run", codec, 2, teacher=teacher)
    with pytest.raises(ArtifactError, match=r"other settings: teacher was '[0-9a-f]+', asked for ''$"):
        joint(tmp_path / "run", codec, 2, resume=True)
    with pytest.raises(ArtifactError, match=r"joint task_weight was 2\.0, asked for 3\.0$"):
        joint(tmp_path / "run", codec, 2, JointConfig(task_weight=3.0), teacher=teacher, resume=True)
    with pytest.raises(ArtifactError, match="other settings: init was"):
        joint(tmp_path / "run", tmp_path / "run" / "codec", 2, teacher=teacher, resume=True)


def test_beside_a_codec_at_rest_the_segmenter_is_train_segmenters(tmp_path: Path, codec: Path) -> None:
    """Same views, same start, same dropout, same recipe: bit for bit, where only the codec's learning is left out."""
    still = JointConfig(task_weight=1.0, ramp=0, codec_lr_share=0.0)
    codec_path, path = joint(tmp_path / "joint", codec, 4, still, loop=loop(4, seed=5, weight_decay=0.02))
    assert not changed(codec_path, codec)
    alone = train_segmenter(
        "compact-latent", frames(3), labels(3), 2, tmp_path / "alone", SEGMENTER,
        loop(4, seed=5, weight_decay=0.02), codec=codec, progress=False,
    )  # fmt: skip
    assert not changed(path, alone)
    tasks = [row["task"] for row in rows(tmp_path / "joint")]
    assert tasks == [row["loss"] for row in rows(tmp_path / "alone")]
    assert checkpoint.load_weights(path).options == checkpoint.load_weights(alone).options
    # That the weights can differ at all: the next seed.
    _, other = joint(tmp_path / "other", codec, 4, still, loop=loop(4, seed=6, weight_decay=0.02))
    assert changed(other, alone)


class NoLoss(RateDistortion):
    """Leaves the codec to the task alone."""

    def __call__(self, x: Tensor, rng: Any, *, bf16: bool, steer: bool) -> tuple[Tensor, dict[str, float]]:
        return torch.zeros(()), {}


def test_the_task_reaches_the_compressor(tmp_path: Path, codec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RateDistortion", NoLoss)
    path, _ = joint(tmp_path / "at-once", codec, 1, JointConfig(ramp=0))
    found = changed(path, codec)
    assert {"compressor.transform.linear.weight", "compressor.transform.exit.weight"} <= found
    assert all(name.startswith("compressor.") for name in found)  # neither a picture nor a rate was asked for
    # Along the ramp the first step has nothing of it, the second a share.
    path, segmenter = joint(tmp_path / "first", codec, 1, JointConfig(ramp=2))
    assert not changed(path, codec)
    path, _ = joint(tmp_path / "second", codec, 2, JointConfig(ramp=2))
    assert changed(path, codec) == found
    # The segmenter itself learns from the first step on, and sees the same latents with a ramp as without.
    assert not changed(segmenter, tmp_path / "at-once" / "segmenter" / "model.safetensors")


def test_the_ramp_grows_by_the_step(tmp_path: Path, codec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RateDistortion", NoLoss)
    norms: dict[int, list[float]] = {}
    for ramp in (0, 4):
        seen = norms[ramp] = []

        def record(parameters: Any, limit: float, seen: list[float] = seen) -> None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            seen.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))

        monkeypatch.setattr("latentseg.training.loop.nn.utils.clip_grad_norm_", record)
        # With nothing learned (a rate of almost 0) the steps differ by their views and the ramp alone.
        config = JointConfig(ramp=ramp, codec_lr_share=0.0)
        joint(tmp_path / str(ramp), codec, 6, config, loop=loop(6, lr=1e-12, warmup=0))
    assert len(norms[0]) == 12
    segmenter, into_codec = (np.array([norms[4][k::2]]) / np.array([norms[0][k::2]]) for k in (0, 1))
    np.testing.assert_allclose(segmenter, 1.0, rtol=1e-3)
    np.testing.assert_allclose(into_codec[0], [0.0, 0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-3)


def test_loss_is_the_sum_that_is_logged(tmp_path: Path, codec: Path, teacher: Path) -> None:
    config = JointConfig(task_weight=3.0, teacher_weight=0.5)
    joint(tmp_path / "a", codec, 1, config, teacher=teacher)
    joint(tmp_path / "b", codec, 1, config)
    taught, alone = rows(tmp_path / "a")[0], rows(tmp_path / "b")[0]
    assert taught["taught"] > 0
    assert alone["taught"] == 0
    # One step: views, crops and start are the same, so the losses differ by what the teacher adds.
    assert taught["task"] == alone["task"]
    assert taught["loss"] - alone["loss"] == pytest.approx(3.0 * 0.5 * taught["taught"], rel=1e-4)
    mse = 10 ** (-alone["psnr"] / 10)
    codec_loss = mse * 255**2 * alone["lambda"] + alone["bpp"]
    assert alone["loss"] == pytest.approx(3.0 * alone["task"] + codec_loss, rel=1e-4)


class WithAuxiliary(CompactSegmenter):
    """Gives its logits a second time as those of an auxiliary head, in training."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def test_a_segmenter_with_an_auxiliary_head(
    tmp_path: Path, codec: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint(tmp_path / "plain", codec, 1, teacher=teacher)
    monkeypatch.setattr("latentseg.models.compact.CompactSegmenter", WithAuxiliary)
    joint(tmp_path / "aux", codec, 1, teacher=teacher, segmenter=replace(SEGMENTER, aux_weight=0.75))
    plain, aux = (rows(tmp_path / name)[0] for name in ("plain", "aux"))
    assert aux["task"] == pytest.approx(1.75 * plain["task"], rel=1e-5)
    assert aux["taught"] == plain["taught"] > 0


def test_bfloat16(tmp_path: Path, codec: Path, teacher: Path) -> None:
    joint(tmp_path, codec, 2, loop=loop(2, bf16=True), teacher=teacher)
    assert all(math.isfinite(rows(tmp_path)[0][name]) for name in ("loss", "task", "taught", "bpp"))


# The teacher


class Fixed(nn.Module):
    """Gives the same logits for every image."""

    align_corners = False

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def kl(teacher: NDArray[Any], student: NDArray[Any], counted: NDArray[Any]) -> float:
    """Sum over classes of p log(p / q), meaned over the counted positions; logits (N, K, h, w), double precision."""
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (teacher.astype(float), student.astype(float)))
    return float((p * np.log(p / q)).sum(1)[counted].mean())


def test_divergence_by_hand(teacher: Path) -> None:
    teaching = Teacher(teacher, 2)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 8, 16, generator=rng)
    logits = torch.randn(2, 2, 4, 8, generator=rng, requires_grad=True)
    target = torch.randint(0, 2, (2, 8, 16), generator=rng)
    target[torch.rand(target.shape, generator=rng) < 0.4] = 255
    counted = target.numpy()[:, 1::2, 1::2] != 255  # the pixel that `nearest-exact` takes for each logit
    assert 0 < counted.sum() < counted.size
    taught, student = teaching.module(x).numpy(), logits.detach().numpy()
    expected = kl(taught, student, counted)
    found = teaching.divergence(x, logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    # Power of the numbers: neither the other direction nor another set of pixels would pass.
    everywhere = np.ones_like(counted)
    for other in (kl(student, taught, counted), kl(taught, student, everywhere), kl(taught, student, ~counted)):
        assert abs(other - expected) > 1e-3 * expected
    # Its gradient is (q - p) / n where there is a label, and nothing elsewhere or in the teacher.
    found.backward()
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (taught, student))
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), (q - p) * counted[:, None] / counted.sum(), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in teaching.module.parameters())
    assert not teaching.module.training


def test_divergence_of_one_position_in_numbers(teacher: Path) -> None:
    teaching = Teacher(teacher, 2)
    teaching.module = Fixed(torch.tensor([3.0, 1.0]).log().reshape(1, 2, 1, 1))  # 3/4 and 1/4 against 1/2 and 1/2
    found = teaching.divergence(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 2).long())
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_divergence_where_nothing_is_labelled_and_where_all_agree(teacher: Path) -> None:
    teaching = Teacher(teacher, 2)
    x, void = torch.rand(1, 3, 8, 8), torch.full((1, 8, 8), 255)
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    found = teaching.divergence(x, logits, void)
    found.backward()
    assert found.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()
    same = teaching.module(x) + 5.0  # the same probabilities
    assert teaching.divergence(x, same, torch.zeros_like(void)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("corners", [False, True])
def test_divergence_from_a_coarser_teacher(teacher: Path, corners: bool) -> None:
    """A teacher's logits come to the student's grid as the teacher's own upsampling has them."""
    teaching = Teacher(teacher, 2)
    coarse = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    teaching.module = Fixed(coarse)
    teaching.module.align_corners = corners  # type: ignore[assignment]
    student = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(2))
    found = teaching.divergence(torch.zeros(1, 3, 8, 12), student, torch.zeros(1, 8, 12).long())
    fine = F.interpolate(coarse, size=(4, 6), mode="bilinear", align_corners=corners)
    assert found.item() == pytest.approx(kl(fine.numpy(), student.numpy(), np.ones((1, 4, 6), bool)), rel=1e-5)


def test_a_taught_student_comes_nearer_to_its_teacher(tmp_path: Path, codec: Path, teacher: Path) -> None:
    teaching = Teacher(teacher, 2)
    x = torch.tensor(np.stack(frames(3))[:, :40, :56]).permute(0, 3, 1, 2) / 255.0
    target = torch.zeros(3, 40, 56, dtype=torch.int64)
    distance = {}
    for weight in (0.0, 50.0):
        config = JointConfig(teacher_weight=weight)
        paths = joint(tmp_path / str(weight), codec, 6, config, teacher=teacher, loop=loop(6, lr=5e-3, ema=0.0))
        encoder, student = (checkpoint.load_weights(path).build() for path in paths)
        with torch.no_grad():
            logits = student.train()(encoder.compress(x).round())  # type: ignore[operator]
            distance[weight] = teaching.divergence(x, logits, target).item()
    assert distance[50.0] < distance[0.0]


# What is refused


def saved(path: Path, network: str, **options: Any) -> Path:
    """A network as it is when it is made."""
    tensors = registry.create(network, **options).state_dict()
    checkpoint.save_weights(path, network, options, tensors, {"settings": {}})
    return path


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, codec: Path, teacher: Path) -> None:
    paper = saved(tmp_path / "paper.safetensors", "kakaiya-codec-d2")
    other = saved(tmp_path / "three.safetensors", "compact-rgb", classes=3, **NARROW)
    latent = saved(tmp_path / "latent.safetensors", "compact-latent", channels=4, **NARROW)
    void = [np.full_like(label, 255) for label in labels(3)]
    refused: list[tuple[dict[str, Any], type[LatentsegError], str]] = [
        ({"network": "compact-rgb"}, UsageError, "'compact-rgb' is not a segmenter of latents"),
        ({"network": "compact-codec"}, UsageError, "'compact-codec' is not a segmenter of latents"),
        ({"network": "compact-latnt"}, UsageError, "no model named"),
        ({"network": "kakaiya-latent-d1"}, ArtifactError, "1/8 resolution, 'kakaiya-latent-d1' expects 1/4"),
        ({"codec": paper}, ArtifactError, "'kakaiya-codec-d2' cannot be trained together .* no rate model"),
        ({"codec": teacher}, ArtifactError, "holds a rgb_segmenter"),
        ({"codec": tmp_path / "none"}, InputError, "no such checkpoint"),
        ({"teacher": other}, ArtifactError, "knows 3 classes, expected the data's 2"),
        ({"teacher": latent}, ArtifactError, "holds a latent_segmenter"),
        ({"teacher": codec}, ArtifactError, "holds a codec"),
        ({"crops": CodecConfig()}, UsageError, "found none"),
        ({"crops": replace(CODEC, patch=36)}, UsageError, "crops of 36, expected a multiple"),
        ({"segmenter": SegmenterConfig(size=(24, 33))}, UsageError, "canvas of 24x33"),
        ({"labels": void}, InputError, "no pixel of any label"),
        ({"resume": True}, InputError, "nothing to resume"),
    ]
    out = tmp_path / "out"
    for number, (changes, error, message) in enumerate(refused):
        with pytest.raises(error, match=message):
            joint(out / str(number), **{"codec": codec, "steps": 1, **changes})
    assert not list(out.glob("**/*.*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_weight": 0.0}, r"task weight of 0\.0"),
        ({"task_weight": float("nan")}, "task weight of nan"),
        ({"task_weight": float("inf")}, "task weight of inf"),
        ({"ramp": -1}, "ramp is -1"),
        ({"codec_lr_share": -0.5}, r"codec_lr_share is -0\.5"),
        ({"teacher_weight": float("nan")}, "teacher_weight is nan"),
    ],
)
def test_weights_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        JointConfig(**changes)
