"""Bundles back to runs: the restored networks compute what the exported ones did, and training goes on from them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_runs import TINY, frames, labels
from PIL import Image
from torch import Tensor, nn

from latentseg.cli import main
from latentseg.engine.bundle import Bundle, load_bundle, write_bundle
from latentseg.errors import ArtifactError, BackendMissingError, InputError, LatentsegError, UsageError
from latentseg.export.assemble import bundle_steps, export_bundle
from latentseg.export.onnx import halve_weights
from latentseg.models import registry
from latentseg.models.rate_model import LaplaceRateModel
from latentseg.training import checkpoint, restore
from latentseg.training.augment import to_float
from latentseg.training.checkpoint import Weights
from latentseg.training.data import camvid_classes
from latentseg.training.restore import restore_bundle
from latentseg.training.train_segmenter import SegmenterConfig, views

# Dilations as the network has them: the command line has no flag for a list, and goes on from these.
LATENT = {"classes": 11, "width": 32, "channels": 4, "root": 5}
RGB = {"classes": 11, "width": 32, "dilations": [1, 3], "detail": 2}
PARTS = ("codec", "segmenter", "rgb_segmenter")
STEPS = (0.5, 2.0)


def trained(network: str, options: dict[str, Any], seed: int, **settings: Any) -> Weights:
    """A network whose every tensor a training could have left: no gain of 1, no plain batch norm, no bias of 0."""
    torch.manual_seed(seed)
    module: Any = registry.create(network, **options)
    if network == "compact-codec":
        patches = torch.stack([to_float(f)[:, y : y + 8, x : x + 8].flatten() for f in frames(4)
                               for y in range(0, 32, 4) for x in range(0, 48, 4)])  # fmt: skip
        module.pca_init(patches)
        for gain in (module.compressor.gain, module.decompressor.gain):
            nn.init.uniform_(gain.log_tenth, -0.03, 0.03)
    for name, tensor in module.named_parameters():
        if name.endswith(("conv2.weight", "exit.weight")):
            nn.init.normal_(tensor, 0.0, 0.01)
        elif name.endswith("bias"):
            tensor.data += 0.05 * torch.randn_like(tensor)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean, 0.0, 0.2)
            nn.init.uniform_(layer.running_var, 0.2, 2.0)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.3, 1.5)
    return Weights(network, options, module.state_dict(), {"settings": settings})


@pytest.fixture(scope="module")
def parts() -> dict[str, Weights]:
    codec = trained("compact-codec", TINY, 1)
    segmenter = trained("compact-unpacked", LATENT, 2, codec=codec.content_id)
    return {"codec": codec, "segmenter": segmenter, "rgb_segmenter": trained("compact-rgb", RGB, 3)}


@pytest.fixture(scope="module")
def bundle(parts: dict[str, Weights], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("restore") / "small"
    return export_bundle(out, "small", **parts, classes=camvid_classes(), size=(16, 16), largest=(24, 24), steps=STEPS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def halved(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("halved")
    models = {}
    for role in bundle.roles:
        shutil.copy(bundle.model_path(role), folder / f"{role}.onnx")
        if "segmenter" in role:
            halve_weights(folder / f"{role}.onnx")
        models[role] = (folder / f"{role}.onnx", 1.0, 1)
    return write_bundle(
        folder / "half", "half", bundle.codec, models, bundle.classes, training=bundle.manifest["training"]
    )


@pytest.fixture(scope="module")
def restored(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restored") / "run"
    paths = restore_bundle(bundle, frames(4), labels(4), out, progress=False)
    assert paths == tuple(out / part / "model.safetensors" for part in PARTS)
    return out


def batch(count: int = 4) -> Tensor:
    return torch.stack([to_float(frame) for frame in frames(count)])


def outputs(found: dict[str, Weights], codec: Any) -> dict[str, Tensor]:
    """What each network makes of the frames; the segmenter of one codec's symbols, so that it alone is compared."""
    x = batch()
    with torch.no_grad():
        own: Any = found["codec"].build()
        z = codec.quantised(codec.compress(x))
        given = {"segmenter": z, "rgb_segmenter": x}
        made = {role: found[role].build()(value) for role, value in given.items()}
        return {**made, "symbols": own.quantised(own.compress(x)), "decoded": own.decompress(z)}


@pytest.mark.parametrize("half", [False, True])
def test_what_is_computed_stays(
    half: bool, bundle: Bundle, halved: Bundle, parts: dict[str, Weights], restored: Path, tmp_path: Path
) -> None:
    if half:
        restore_bundle(halved, frames(4), labels(4), tmp_path / "half", progress=False)
        restored = tmp_path / "half"
    found = {part: checkpoint.load_weights(restored / part) for part in PARTS}
    codec = parts["codec"].build()
    made, expected = outputs(found, codec), outputs(parts, codec)
    assert expected["symbols"].unique().numel() > 20
    assert torch.equal(made["symbols"], expected["symbols"])
    torch.testing.assert_close(made["decoded"], expected["decoded"], rtol=1e-5, atol=1e-6)
    for role in ("segmenter", "rgb_segmenter"):
        scale = expected[role].std().item()
        assert scale > 0.05
        torch.testing.assert_close(made[role], expected[role], rtol=0, atol=(1e-2 if half else 1e-4) * scale)
        assert half == bool((made[role] - expected[role]).abs().max() > 1e-4 * scale)


def test_options_and_facts_are_those_of_a_run(bundle: Bundle, parts: dict[str, Weights], restored: Path) -> None:
    found = {part: checkpoint.load_weights(restored / part) for part in PARTS}
    for part, weights in found.items():
        assert (weights.network, weights.options) == (parts[part].network, parts[part].options)
        assert weights.facts["settings"]["restored_from"] == "small"
    settings = found["segmenter"].facts["settings"]
    assert settings["codec"] == found["codec"].content_id != parts["codec"].content_id
    assert bundle_steps(found["codec"], {"segmenter": found["segmenter"]}) == STEPS == bundle.codec.steps
    assert found["rgb_segmenter"].facts["settings"]["codec"] == ""
    assert -12 < found["codec"].facts["log_lambda"] < 0


def test_training_sees_what_evaluation_sees(restored: Path) -> None:
    codec: Any = checkpoint.load_weights(restored / "codec").build()
    x, _ = views(frames(4), labels(4), SegmenterConfig(size=(40, 56), batch=32), np.random.default_rng(9))
    with torch.no_grad():
        given = {"segmenter": codec.quantised(codec.compress(x)), "rgb_segmenter": x}
        for role, value in given.items():
            module: Any = checkpoint.load_weights(restored / role).build()
            expected = module(value)
            apart = {}
            for how in ("measured", "plain"):
                if how == "plain":  # the function kept with statistics that nobody measured
                    for layer in module.modules():
                        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
                            factor = layer.weight / (layer.running_var + layer.eps).sqrt()
                            layer.bias.data -= factor * layer.running_mean
                            layer.weight.data = factor * (1.0 + layer.eps) ** 0.5
                module.train()
                module.entry.get_submodule("strided.0" if role == "segmenter" else "0").eval()  # its own were shipped
                module.trunk.dropout.eval()
                apart[how] = ((module(value) - expected).std() / expected.std()).item()
            assert apart["measured"] < 0.25
            assert apart["plain"] > 2 * apart["measured"]
            longest = module.trunk.fuse[0].weight.flatten(1).norm(dim=1)
            torch.testing.assert_close(longest, torch.full_like(longest, 1.5))


def test_the_rate_model_is_fitted(restored: Path) -> None:
    codec: Any = checkpoint.load_weights(restored / "codec").build()
    with torch.no_grad():
        symbols = codec.quantised(codec.compress(batch()))
    other = LaplaceRateModel(codec.channels)
    fresh = other(symbols).item()
    other.choose(symbols)
    optimizer = torch.optim.LBFGS(other.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        bits: Tensor = other.bits(symbols).mean()
        bits.backward()
        return bits

    optimizer.step(closure)  # type: ignore[arg-type]
    best, found = other(symbols).item(), codec.rate_model(symbols).item()
    assert best < 0.9 * fresh
    # The best for these very symbols alone; the restored one serves crops of other scales, at all of the steps.
    assert found < 1.15 * best


def test_a_codec_alone_and_fresh(tmp_path: Path) -> None:
    """Zeros are the same everywhere, and the exporter drops or merges them; the gains of 1 stay."""
    torch.manual_seed(0)
    options = {**TINY, "encoder_units": 2}
    codec: Any = registry.create("compact-codec", **options)
    codec.pca_init(torch.rand(400, 192))
    weights = Weights("compact-codec", options, codec.state_dict(), {"settings": {}, "log_lambda": -5.5})
    bundle = export_bundle(tmp_path / "b", "b", weights, size=(16, 16), largest=(24, 24))
    restore_bundle(bundle, frames(2), labels(2), tmp_path / "a", progress=False)
    restore_bundle(bundle, frames(2), labels(2), tmp_path / "again", progress=False)
    found = checkpoint.load_weights(tmp_path / "a" / "codec")
    assert found.content_id == checkpoint.load_weights(tmp_path / "again" / "codec").content_id
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["codec"]
    # A number of units that is the network's own is none of its options, as in a run that was not given it.
    assert found.options == {name: value for name, value in options.items() if name != "encoder_units"}
    assert found.facts == {"settings": {"restored_from": "b"}, "log_lambda": -5.5}
    for name, value in codec.state_dict().items():
        if "rate_model" not in name:
            torch.testing.assert_close(found.tensors[name], value, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for index, (frame, label) in enumerate(zip(frames(3), labels(3), strict=True)):
        Image.fromarray(frame).save(root / f"{index}.png")
        Image.fromarray(label).save(root / f"label{index}.png")
    (root / "train.txt").write_text("".join(f"{index}.png label{index}.png\n" for index in range(3)))
    return root


def test_training_and_export_go_on(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    run, joint, again = tmp_path / "run", tmp_path / "joint", tmp_path / "again"
    assert main(["train", "restore", str(bundle.path), "--data", str(data), "--out", str(run), "-q"]) == 0
    argv = ["train", "joint", "--network", "compact-unpacked", "--option", "width=32", "--option", "root=5"]
    argv += ["--codec", str(run / "codec"), "--init", str(run / "segmenter"), "--teacher", str(run / "rgb_segmenter")]
    argv += ["--data", str(data), "--size", "24", "32", "--target-bpp", "0.5", "--steps", "1", "--batch", "2"]
    assert main([*argv, "--threads", "1", "--fp32", "--out", str(joint), "-q"]) == 0
    found = checkpoint.load_weights(joint / "codec").facts["settings"]
    assert found["segmenter_init"] == checkpoint.load_weights(run / "segmenter").content_id
    assert checkpoint.load_weights(joint / "segmenter").options == LATENT
    argv = ["export", "--codec", str(run / "codec"), "--segmenter", str(run / "segmenter"), "--size", "16", "16"]
    assert main([*argv, "--largest", "24", "24", "-o", str(again), "-q"]) == 0
    assert load_bundle(again).codec.steps == STEPS


def edited(bundle: Bundle, folder: Path, *keys: str, value: Any) -> Bundle:
    """The bundle's copy with another value in its manifest."""
    shutil.copytree(bundle.path, folder)
    raw = json.loads((folder / "manifest.json").read_text())
    section = raw
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(raw))
    return load_bundle(folder)


def test_what_is_refused(
    bundle: Bundle, tiny_bundle: Bundle, restored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent, scaling = ("training", "segmenter", "network"), ("codec", "scaling")
    swapped = edited(
        bundle, tmp_path / "swapped", "files", "segmenter", value=bundle.manifest["files"]["rgb_segmenter"]
    )
    cases: list[tuple[Bundle, type[LatentsegError], str]] = [
        (tiny_bundle, ArtifactError, "its codec is tiny-mean, expected compact-codec"),
        (
            edited(bundle, tmp_path / "deeplab", *latent, value="compact-cdeeplab"), ArtifactError,
            "its segmenter is compact-cdeeplab, expected compact-unpacked or compact-latent",
        ),
        (edited(bundle, tmp_path / "none", "training", value={}), ArtifactError, "of no network that the manifest"),
        (edited(bundle, tmp_path / "latent", *latent, value="compact-latent"), ArtifactError, "weights of shape"),
        (edited(bundle, tmp_path / "bits", "codec", "bits", value=7), ArtifactError, "its codec has stride 8"),
        (
            edited(bundle, tmp_path / "range", *scaling, value={"mode": "fixed", "lo": 0.0, "hi": 255.0}),
            ArtifactError, "its codec has stride 8 and Scaling",
        ),
        (swapped, ArtifactError, "its segmenter has 10 convolutions"),
    ]  # fmt: skip
    for found, error, message in cases:
        with pytest.raises(error, match=message):
            restore_bundle(found, frames(2), labels(2), tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="smaller than 8x8"):
        restore_bundle(bundle, frames(2, 7, 40), labels(2), tmp_path / "out", progress=False)
    with pytest.raises(UsageError, match="already holds a run"):
        restore_bundle(bundle, frames(2), labels(2), restored, progress=False)
    (tmp_path / "file").write_text("kept")
    with monkeypatch.context() as patched:
        patched.setattr(restore, "networks_of", lambda _: pytest.fail("work has begun"))
        for out in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(UsageError, match="is a file, or lies in one"):
                restore_bundle(bundle, frames(2), labels(2), out, progress=False)
    networks = restore.networks_of(bundle)
    networks["rgb_segmenter"].module.trunk.classifier.weight.data.neg_()
    monkeypatch.setattr(restore, "networks_of", lambda _: networks)
    with pytest.raises(ArtifactError, match=r"its rgb_segmenter has .*% other values once it is restored"):
        restore_bundle(bundle, frames(2), labels(2), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_what_the_command_line_refuses(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["train", "restore", str(bundle.path), "--out", str(tmp_path / "out"), "-q"]
    assert main([*argv, "--data", str(tmp_path / "nowhere")]) == 3
    assert "no split 'train'" in capsys.readouterr().err
    assert main([*argv, "--data", str(tmp_path), "--layout", "nuscenes"]) == 2
    assert "unknown layout 'nuscenes'" in capsys.readouterr().err
    assert main(["train", "restore", "nothing", "--data", ".", "--out", "x", "-q"]) == 2
    assert "no bundle named 'nothing'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendMissingError, match="needs the package 'onnx'"):
        restore.networks_of(bundle)
    assert not (tmp_path / "out").exists()
