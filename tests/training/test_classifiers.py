"""Classifiers on tiny data: what they learn from, what is stored, how runs resume, how they are scored."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_classifiers import (
    CONFIG,
    NAMES,
    centred,
    image_set,
    pictures,
    tiny_networks,  # noqa: F401 - a fixture
)
from _tiny_runs import Counted, KilledError, loop, rows, tiny_codec, weights
from torch import Tensor, nn
from torch.nn import functional as F

from latentseg.errors import ArtifactError, LatentsegError, UsageError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.augment import to_float
from latentseg.training.evaluate import coded_bpp, decoded_by, sheets
from latentseg.training.evaluate_classifier import evaluate_classifier
from latentseg.training.image_sets import CentreViews, ImageSet
from latentseg.training.loop import step_rng
from latentseg.training.received import RoundTrip
from latentseg.training.train_classifier import ClassifierConfig, classified_views, train_classifier
from latentseg.training.train_joint_classifier import JointClassifierConfig, train_joint_classifier


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_codec(tmp_path_factory.mktemp("codec"))


def train(folder: Path, steps: int, network: str = "tiny-rgb", **changes: Any) -> Path:
    options = {"images": image_set(), "config": CONFIG, "loop": loop(steps), **changes}
    args = (options.pop("images"), folder, options.pop("config"), options.pop("loop"))
    return train_classifier(network, *args, progress=False, **options)


def test_a_classifier_learns_and_says_what_from(tmp_path: Path, codec: Path) -> None:
    config = loop(60, interval=30, lr=0.05, ema=0.9)
    path = train(tmp_path / "rgb", 60, loop=config, options={"width": 4}, data_note="pictures")
    found = checkpoint.load_weights(path, kinds=("rgb_classifier",))
    assert found.options == {"classes": 3, "width": 4}
    settings = found.facts["settings"]
    assert settings["class_names"] == list(NAMES)
    assert (settings["codec"], settings["decoded_by"], settings["data"]) == ("", "", "pictures")
    assert settings["classifier"] == {"size": 16, "batch": 4, "area": [0.5, 1.0], "flip": True}
    log = rows(tmp_path / "rgb")
    assert log[-1]["loss"] < log[0]["loss"]
    scores = evaluate_classifier(found.build(), image_set(), 16, progress=False)
    assert scores == {"images": 12, "top1": 1.0, "top5": 1.0}
    latent = checkpoint.load_weights(train(tmp_path / "latent", 2, "tiny-latent", codec=codec))
    assert latent.options == {"classes": 3, "channels": 4}
    assert latent.facts["settings"]["codec"] == checkpoint.load_weights(codec).content_id
    decoded = checkpoint.load_weights(train(tmp_path / "decoded", 2, decoded_by=codec)).facts["settings"]
    assert (decoded["codec"], decoded["decoded_by"]) == ("", checkpoint.load_weights(codec).content_id)


def test_the_first_step_is_cross_entropy_of_what_the_network_sees(tmp_path: Path, codec: Path) -> None:
    for number, (network, chosen) in enumerate(
        (("tiny-rgb", {}), ("tiny-latent", {"codec": codec}), ("tiny-rgb", {"decoded_by": codec}))
    ):
        train(tmp_path / str(number), 1, network, loop=loop(1, seed=3), **chosen)
        x, target = classified_views(image_set(), CONFIG, step_rng(3, 0))
        assert x.shape == (4, 3, 16, 16)
        module = checkpoint.load_weights(codec).build()
        shown = x
        if "codec" in chosen:
            with torch.no_grad():
                shown = module.compress(x).round()  # type: ignore[operator]
        elif chosen:
            decode = decoded_by(module)
            images = [(view.permute(1, 2, 0) * 255).round().byte().numpy() for view in x]
            shown = torch.stack([to_float(decode(image)) for image in images])
        torch.manual_seed(3)
        options = {"channels": 4} if "codec" in chosen else {}
        logits = registry.create(network, classes=3, **options).train()(shown)
        expected = -torch.log_softmax(logits, 1)[torch.arange(4), target].mean().item()
        assert rows(tmp_path / str(number))[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_run_and_resume_are_the_same(tmp_path: Path, optimizer: str) -> None:
    config = loop(6, optimizer=optimizer, schedule="step", decay_at=(0.5,), lr=0.01)
    whole = train(tmp_path / "a", 6, loop=config)
    mortal = Counted(pictures(), last=4 * 5 + 2)  # four views a step: in step 6, after the checkpoint of step 4
    with pytest.raises(KilledError):
        train(tmp_path / "b", 6, loop=config, images=image_set(mortal))
    assert [row["step"] for row in rows(tmp_path / "b")] == [2, 4]
    resumed = train(tmp_path / "b", 6, loop=config, resume=True)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(ArtifactError, match=r"class_names was .*'red'"):
        train(tmp_path / "b", 6, loop=config, resume=True, images=replace(image_set(), names=("a", "b", "c")))


def test_a_run_goes_on_from_another(tmp_path: Path) -> None:
    first = train(tmp_path / "first", 2)
    still = loop(1, lr=1e-12, warmup=0, ema=0.0)
    kept, fresh = train(tmp_path / "kept", 1, loop=still, init=first), train(tmp_path / "fresh", 1, loop=still)
    name = "backbone.0.weight"
    torch.testing.assert_close(weights(kept)[name], weights(first)[name], rtol=0, atol=1e-9)
    assert not torch.equal(weights(fresh)[name], weights(first)[name])
    assert checkpoint.load_weights(kept).facts["settings"]["init"] == checkpoint.load_weights(first).content_id


def test_a_segmenter_of_latents_takes_over_the_trunk_of_one_of_rgb(tmp_path: Path) -> None:
    from latentseg.training.train_segmenter import fill_from

    torch.manual_seed(1)
    options = {"width": 8, "classes": 3, "dilations": [1]}
    source = registry.create("compact-rgb", **options)
    path = tmp_path / "rgb.safetensors"
    checkpoint.save_weights(path, "compact-rgb", options, source.state_dict(), {"settings": {}})
    student = registry.create("compact-latent", channels=4, **options)
    entry = {k: v.clone() for k, v in student.entry.state_dict().items()}
    assert fill_from(student, path, "compact-latent", "latent_segmenter") == checkpoint.load_weights(path).content_id
    for name, value in student.trunk.state_dict().items():
        assert torch.equal(value, source.state_dict()[f"trunk.{name}"]), name
    assert all(torch.equal(value, entry[name]) for name, value in student.entry.state_dict().items())
    other = registry.create("compact-cdeeplab", channels=4, width=8)
    with pytest.raises(ArtifactError, match=r"the RGB segmenter in .* and 'compact-cdeeplab' do not share a trunk"):
        fill_from(other, path, "compact-cdeeplab", "latent_segmenter")


def test_a_segmenter_takes_over_a_classifiers_backbone(tmp_path: Path, codec: Path) -> None:
    from latentseg.training.train_segmenter import fill_from

    torch.manual_seed(1)
    options = {"width": 8, "channels": 4, "classes": 3}
    source = registry.create("compact-cresnet", **options)
    path = tmp_path / "c.safetensors"
    checkpoint.save_weights(path, "compact-cresnet", options, source.state_dict(), {"settings": {}})
    backbone = registry.create("compact-cresnet", **{**options, "classes": 9})
    found = nn.Module()
    found.backbone = backbone.backbone
    assert fill_from(found, path, "its twin", "latent_segmenter") == checkpoint.load_weights(path).content_id
    for name, value in found.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[f"backbone.{name}"]), name
    with pytest.raises(ArtifactError, match="'compact-latent' has no backbone"):
        fill_from(registry.create("compact-latent", channels=4), path, "compact-latent", "latent_segmenter")
    with pytest.raises(ArtifactError, match="do not fit network 'compact-cdeeplab'"):
        fill_from(
            registry.create("compact-cdeeplab", channels=4, width=8), path, "compact-cdeeplab", "latent_segmenter"
        )
    with pytest.raises(ArtifactError, match="expected rgb_segmenter or rgb_classifier"):
        fill_from(registry.create("compact-deeplab", width=8), path, "compact-deeplab", "rgb_segmenter")


@pytest.mark.parametrize("size", [16, 13])
def test_a_round_trip_is_the_codecs(codec: Path, size: int) -> None:
    module = checkpoint.load_weights(codec).build()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    found = RoundTrip(module)(torch.stack([to_float(image) for image in images]))
    decode = decoded_by(module)
    expected = torch.stack([to_float(decode(image)) for image in images])
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255)
    assert (found != expected).float().mean() < 1e-3  # one by one or in a batch, a value may round the other way


class Fixed(nn.Module):
    """Says what it was told to, in turn."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, x: Tensor) -> Tensor:
        self.at += len(x)
        return self.logits[self.at - len(x) : self.at]


def test_scores_by_hand() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 70)
    images = ImageSet([np.zeros((8, 8, 3), np.uint8)] * 70, labels, tuple("abcdefg"), (1, 1), 1.0)
    logits = torch.from_numpy(rng.normal(size=(70, 7)))
    ranks = (logits.numpy() > logits.numpy()[np.arange(70), labels][:, None]).sum(1)
    scores = evaluate_classifier(Fixed(logits), images, 8, progress=False)
    assert scores == {"images": 70, "top1": (ranks == 0).mean(), "top5": (ranks < 5).mean()}
    few = ImageSet(images.images, labels % 3, NAMES, (1, 1), 1.0)
    assert evaluate_classifier(Fixed(logits[:, :3]), few, 8, progress=False)["top5"] == 1.0


def test_rates_are_those_of_real_bytes(codec: Path) -> None:
    module = checkpoint.load_weights(codec).build()
    images = image_set()
    views = list(CentreViews(images, 16))
    classifier = registry.create("tiny-latent", channels=4, classes=3)
    scores = evaluate_classifier(classifier, images, 16, codec=module, progress=False)
    assert scores["bpp"] == pytest.approx(coded_bpp(module, views))
    assert scores["sheet_bpp"] == pytest.approx(coded_bpp(module, list(sheets(views))))
    assert scores["sheet_bpp"] < scores["bpp"]
    decoded = evaluate_classifier(
        registry.create("tiny-rgb", classes=3), images, 16, codec=module, decoded=True, progress=False
    )
    assert decoded["bpp"] == scores["bpp"]


def joint(folder: Path, codec: Path, steps: int, **changes: Any) -> tuple[Path, Path]:
    settings = {"gamma": 0.01, "beta": 30.0}
    options = {
        "network": "tiny-latent", "images": image_set(), "config": CONFIG, "loop": loop(steps),
        "joint": JointClassifierConfig(0.5, **settings), **changes,
    }  # fmt: skip
    args = [options.pop(k) for k in ("network", "images")]
    more = [options.pop(k) for k in ("config", "joint", "loop")]
    return train_joint_classifier(*args, folder, *more, codec=codec, progress=False, **options)


def test_joint_training_moves_all_parts_and_keeps_them_together(tmp_path: Path) -> None:
    start = centred(tmp_path / "c.safetensors")
    paths = joint(tmp_path / "run", start, 4)
    assert paths == tuple(tmp_path / "run" / part / "model.safetensors" for part in ("codec", "classifier"))
    codec = checkpoint.load_weights(paths[0], kinds=("codec",))
    classifier = checkpoint.load_weights(paths[1], kinds=("latent_classifier",))
    before = checkpoint.load_weights(start)
    assert (codec.network, codec.options) == (before.network, before.options)
    assert classifier.options == {"classes": 3, "channels": 8}
    settings = classifier.facts["settings"]
    assert settings["codec"] == codec.content_id != before.content_id == settings["init"]
    assert settings["class_names"] == list(NAMES)
    assert settings["joint"] == {"target_bpp": 0.5, "gamma": 0.01, "beta": 30.0, "codec_lr_share": 1.0}
    for name, _ in codec.build().named_parameters():  # encoder, centres and decoder
        assert not torch.equal(codec.tensors[name], before.tensors[name]), name
    assert rows(tmp_path / "run")[0].keys() >= {"task", "top1", "psnr", "entropy", "target_entropy", "measured_bpp"}
    scores = evaluate_classifier(classifier.build(), image_set(), 16, codec=codec.build(), progress=False)
    assert scores["images"] == 12


def test_the_joint_loss_by_hand(tmp_path: Path) -> None:
    start = centred(tmp_path / "c.safetensors")
    joint(tmp_path / "run", start, 1, loop=loop(1, seed=3))
    row = rows(tmp_path / "run")[0]
    codec = checkpoint.load_weights(start).build().train()
    torch.manual_seed(3)
    classifier = registry.create("tiny-latent", channels=8, classes=3).train()
    x, target = classified_views(image_set(), CONFIG, step_rng(3, 0))
    with torch.no_grad():
        z: Tensor = codec.compress(x)  # type: ignore[operator]
        centres = codec.quantiser.centres  # type: ignore[union-attr]
        index = (z[..., None] - centres).abs().argmin(-1)  # type: ignore[operator]
        received = centres[index]  # type: ignore[index]
        mse = ((codec.decompress(received) - x) * 255).pow(2).mean().item()  # type: ignore[operator]
        task = F.cross_entropy(classifier(received), target).item()
    share = torch.bincount(index.flatten(), minlength=6).double() / index.numel()
    entropy = -sum(p * math.log2(p) for p in share.tolist() if p)
    assert row["task"] == pytest.approx(task, rel=1e-4)
    assert row["entropy"] == pytest.approx(entropy, rel=1e-3)
    excess = max(entropy - row["target_entropy"], 0.0)
    penalty = 0.05 * float((centres.detach() ** 2).sum())  # type: ignore[operator, arg-type]
    assert row["loss"] == pytest.approx(task + 0.01 * (mse + 30 * excess + penalty), rel=1e-3)


def test_the_task_reaches_the_encoder(tmp_path: Path) -> None:
    """Without the codec's own loss, what moves the encoder is the classifier's."""
    start = centred(tmp_path / "c.safetensors")
    config = JointClassifierConfig(0.5, gamma=0.0)
    found = weights(joint(tmp_path / "run", start, 2, joint=config)[0])
    moved = {name for name, value in weights(start).items() if not torch.equal(found[name], value)}
    assert any(name.startswith("compressor") for name in moved)
    assert "quantiser.centres" in moved
    assert not any(name.startswith("decompressor") for name in moved)


def test_joint_run_and_resume_are_the_same(tmp_path: Path) -> None:
    start = centred(tmp_path / "c.safetensors")
    whole = joint(tmp_path / "a", start, 6)
    # The measured frames take each picture once before the first step, and again before the resumed one.
    mortal = Counted(pictures(), last=12 + 4 * 5 + 2)
    with pytest.raises(KilledError):
        joint(tmp_path / "b", start, 6, images=image_set(mortal))
    assert [row["step"] for row in rows(tmp_path / "b")] == [2, 4]
    resumed = joint(tmp_path / "b", start, 6, resume=True)
    for one, other in zip(whole, resumed, strict=True):
        assert checkpoint.load_weights(one).content_id == checkpoint.load_weights(other).content_id


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, codec: Path) -> None:
    start = centred(tmp_path / "c.safetensors")
    rgb = train(tmp_path / "rgb", 1)
    out = tmp_path / "out"
    alone: list[tuple[dict[str, Any], type[LatentsegError], str]] = [
        ({"network": "compact-codec"}, UsageError, "'compact-codec' is not a classifier"),
        ({"network": "tiny-latent"}, UsageError, "'tiny-latent' is a latent classifier"),
        ({"network": "tiny-latent", "decoded_by": codec}, UsageError, "'tiny-latent' is a latent classifier"),
        ({"codec": codec}, UsageError, "'tiny-rgb' is an RGB classifier"),
        ({"codec": rgb, "network": "tiny-latent"}, ArtifactError, "holds a rgb_classifier"),
        ({"codec": codec, "network": "tiny-latent", "init": rgb}, ArtifactError, "expected latent_classifier"),
        (
            {"codec": codec, "network": "tiny-latent", "config": ClassifierConfig(size=20, batch=2)},
            UsageError,
            "views of 20, expected a multiple of the codec's stride, 8",
        ),
        (
            {"codec": codec, "network": "tiny-latent", "options": {"channels": 9}},
            ArtifactError,
            "latents of 4 channels",
        ),
    ]
    for number, (changes, error, message) in enumerate(alone):
        with pytest.raises(error, match=message):
            train(out / str(number), 1, **changes)
    together: list[tuple[dict[str, Any], type[LatentsegError], str]] = [
        ({"network": "tiny-rgb"}, UsageError, "'tiny-rgb' is not a classifier of latents"),
        ({"codec": codec}, ArtifactError, "it has no learned centres"),
        ({"init": rgb}, ArtifactError, "expected latent_classifier"),
    ]
    for number, (changes, error, message) in enumerate(together):
        with pytest.raises(error, match=message):
            joint(out / f"joint-{number}", **{"codec": start, "steps": 1, **changes})
    assert not list(out.glob("**/*.*"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassifierConfig(batch=1),
        lambda: ClassifierConfig(area=(0.0, 1.0)),
        lambda: ClassifierConfig(area=(0.5, 1.5)),
        lambda: ClassifierConfig(area=(float("nan"), 1.0)),
        lambda: JointClassifierConfig(0.0),
        lambda: JointClassifierConfig(float("nan")),
        lambda: JointClassifierConfig(0.5, gamma=-1.0),
        lambda: JointClassifierConfig(0.5, beta=float("inf")),
    ],
)
def test_settings_that_make_no_sense(make: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        make()
