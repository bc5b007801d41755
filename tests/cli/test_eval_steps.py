"""eval and export of networks that know many steps, and eval on JPEGs, against the same done by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _tiny_runs import NARROW, TINY, frames, labels, scores
from PIL import Image

from latentseg.bitstream import Scaling, StreamHeader, Writer
from latentseg.cli import main
from latentseg.engine.bundle import load_bundle
from latentseg.export.assemble import bundle_steps
from latentseg.kernels import entropy
from latentseg.models import registry
from latentseg.training import checkpoint

SIZE = (40, 56)  # of `frames`, multiples of the stride


def save(folder: Path, network: str, options: dict[str, Any], settings: dict[str, Any]) -> checkpoint.Weights:
    """A network of random weights, as a training leaves it; a codec has the PCA's start."""
    torch.manual_seed(0)
    module = registry.create(network, **options)
    if network == "compact-codec":
        module.pca_init(torch.rand(400, 192, generator=torch.Generator().manual_seed(0)))  # type: ignore[operator]
    else:
        with torch.no_grad():  # so that labels follow the input, and not the biases
            module.trunk.classifier.bias.zero_()  # type: ignore[operator, union-attr]
    folder.mkdir()
    path = folder / "model.safetensors"
    checkpoint.save_weights(path, network, options, module.state_dict(), {"settings": settings, "steps": 0})
    return checkpoint.load_weights(folder)


def write_data(root: Path, images: list[np.ndarray]) -> list[str]:
    """A data set in CamVid's layout, and the words that name it."""
    lines = []
    for index, (image, label) in enumerate(zip(images, labels(len(images)), strict=True)):
        for folder, array in (("val", image), ("valannot", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{index}.png")
        lines.append(f"val/{index}.png valannot/{index}.png\n")
    (root / "val.txt").write_text("".join(lines))
    return ["--data", str(root)]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that knows 0.4 to 2.5, its segmenter that knows 0.5 to 4, an RGB segmenter, and data."""
    root = tmp_path_factory.mktemp("steps")
    codec = save(root / "codec", "compact-codec", TINY, {"codec": {"step_range": [0.4, 2.5]}})
    settings = {"codec": codec.content_id, "segmenter": {"step_range": [0.5, 4.0]}}
    save(root / "latent", "compact-latent", {"classes": 11, "channels": 4, **NARROW}, settings)
    save(root / "rgb", "compact-rgb", {"classes": 11, **NARROW}, {"codec": ""})
    write_data(root / "data", frames(3))
    return root


def by_hand(work: Path, step: float) -> tuple[list[np.ndarray], float]:
    """The decoded frames, and the mean bpp of the streams' frames: symbols rounded in NumPy, coded with the header."""
    codec = checkpoint.load_weights(work / "codec").build()
    header = StreamHeader(
        bytes(32),
        (4, 5, 7),
        8,
        Scaling("fixed", -128 * step, 127 * step),
        SIZE,
        tile=codec.tile,  # type: ignore[arg-type]
    )
    decoded, bits = [], []
    for frame in frames(3):
        with torch.no_grad():
            x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            z = codec.compress(x)[0].double().numpy()  # type: ignore[operator]
            q = np.rint(z / step).clip(-128, 127)
            image = codec.decompress(torch.from_numpy((q * step).astype(np.float32))[None])[0]  # type: ignore[operator]
        decoded.append((image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).numpy())
        payload = entropy.encode_symbols((q + 128).astype(np.uint8), header)
        bits.append(8 * Writer(io.BytesIO(), header).write(payload))
    return decoded, float(np.mean(bits)) / (SIZE[0] * SIZE[1])


@pytest.mark.parametrize("step", ["0.4", "1", "2.5", "6"])
def test_eval_codec(work: Path, step: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "codec", str(work / "codec"), "--frames", str(work / "data" / "val"), "--step", step]
    found = scores(capsys, *argv)
    decoded, bpp = by_hand(work, float(step))
    errors = [((a.astype(float) - b) ** 2).mean() for a, b in zip(decoded, frames(3), strict=True)]
    assert found["step"] == float(step)
    assert found["bpp"] == pytest.approx(bpp, rel=1e-3)
    assert found["psnr"] == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]), abs=0.01)
    # The rate model counts symbols, whatever they stand for: it falls with the step as the bytes do.
    assert 0 < found["rate_model_bpp"] < 8
    assert main(argv) == 0
    noted = "note: step 6, and the codec was trained for 0.4 to 2.5" in capsys.readouterr().err
    assert noted == (step == "6")


def test_the_rate_model_is_asked_of_whole_symbols(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "codec", str(work / "codec"), "--frames", str(work / "data" / "val"), "--step"]
    codec = checkpoint.load_weights(work / "codec").build()
    with torch.no_grad():
        x = torch.stack([torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in frames(3)])
        z = codec.compress(x)  # type: ignore[operator]
        bits = codec.rate_model((z / 2.5).round().clamp(-128, 127))  # type: ignore[operator]
    assert scores(capsys, *argv, "2.5")["rate_model_bpp"] == pytest.approx(bits.item() / x[:, 0].numel(), rel=1e-3)


@pytest.mark.parametrize("step", [0.5, 2.0])
def test_eval_segmenter_behind_a_codec(
    work: Path, step: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(work / "data")]
    decoded, bpp = by_hand(work, step)
    latent = ["eval", "segmenter", str(work / "latent"), "--codec", str(work / "codec"), *data]
    found = scores(capsys, *latent, "--step", str(step))
    assert found["step"] == step
    assert found["bpp"] == pytest.approx(bpp, rel=1e-3)
    assert found["iou"] != scores(capsys, *latent)["iou"]  # of step 1
    # An RGB segmenter of the decoded frames says what it says of the same frames as files.
    rgb = ["eval", "segmenter", str(work / "rgb")]
    behind = scores(capsys, *rgb, "--decoded-by", str(work / "codec"), "--step", str(step), *data)
    files = scores(capsys, *rgb, *write_data(tmp_path / "decoded", decoded))
    assert behind["pixel_accuracy"] == pytest.approx(files["pixel_accuracy"], abs=2e-3)
    assert behind["bpp"] == found["bpp"]
    assert not {"bpp", "step", "jpeg_quality"} & files.keys()


def test_eval_segmenter_on_jpegs(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb = ["eval", "segmenter", str(work / "rgb")]
    files, decoded = [io.BytesIO() for _ in range(3)], []
    for file, frame in zip(files, frames(3), strict=True):
        Image.fromarray(frame).save(file, "JPEG", quality=7, subsampling=2, optimize=True)
        decoded.append(np.asarray(Image.open(file)))
    found = scores(capsys, *rgb, "--data", str(work / "data"), "--jpeg-quality", "7")
    assert found["jpeg_quality"] == 7
    assert found["bpp"] == pytest.approx(8 * np.mean([len(f.getvalue()) for f in files]) / (SIZE[0] * SIZE[1]))
    expected = scores(capsys, *rgb, *write_data(tmp_path / "jpeg", decoded))
    assert {key: found[key] for key in expected} == expected
    assert found["iou"] != scores(capsys, *rgb, "--data", str(work / "data"))["iou"]


def test_eval_refuses_what_does_not_fit(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(work / "data"), "-q"]
    latent, rgb = (["eval", "segmenter", str(work / name), *data] for name in ("latent", "rgb"))
    codec = str(work / "codec")
    cases = [
        ([*rgb, "--step", "2"], "--step without a codec"),
        ([*rgb, "--jpeg-quality", "30", "--step", "2"], "--step without a codec"),
        ([*rgb, "--jpeg-quality", "30", "--decoded-by", codec], "is an RGB segmenter"),
        ([*latent, "--codec", codec, "--jpeg-quality", "30"], "is a latent segmenter"),
        ([*latent, "--codec", codec, "--decoded-by", codec], "is a latent segmenter"),
        ([*latent, "--step", "2"], "is a latent segmenter"),
        ([*rgb, "--jpeg-quality", "0"], "expected a quality from 1 to 100, found '0'"),
        ([*rgb, "--jpeg-quality", "101"], "expected a quality from 1 to 100"),
        ([*latent, "--codec", codec, "--step", "-1"], "expected a number above 0"),
    ]
    for argv, message in cases:
        assert main(argv) == 2, argv
        assert message in capsys.readouterr().err, argv


def test_export_writes_the_steps_that_all_know(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--size", "16", "24", "--largest", "24", "24", "-q"]
    codec = ["export", "--codec", str(work / "codec"), *sizes]
    assert main([*codec, "-o", str(tmp_path / "codec")]) == 0
    assert load_bundle(tmp_path / "codec").codec.steps == (0.4, 2.5)
    pair = ["--segmenter", str(work / "latent"), "--rgb-segmenter", str(work / "rgb")]
    assert main([*codec, *pair, "-o", str(tmp_path / "pair")]) == 0
    bundle = load_bundle(tmp_path / "pair")
    assert bundle.codec.steps == (0.5, 2.5)
    # The bundle does at a step what eval measured at it.
    out = tmp_path / "x.lseg"
    argv = ["encode", str(work / "data" / "val"), "-o", str(out), "--bundle", str(bundle.path), "--step", "2", "-q"]
    assert main(argv) == 0
    bits = 8 * (out.stat().st_size - bundle.header(*SIZE).size)
    found = scores(capsys, "eval", "codec", str(work / "codec"), "--frames", str(work / "data" / "val"), "--step", "2")
    assert bits / (3 * SIZE[0] * SIZE[1]) == pytest.approx(found["bpp"], rel=5e-3)


@pytest.mark.parametrize(
    ("codec", "segmenter", "steps"),
    [
        (None, [0.4, 2.5], (1, 1)),
        ([0.4, 2.5], None, (1, 1)),
        ([0.5, 3.0], [0.5, 3.0], (0.5, 3)),
        ([0.4, 3.0], [0.5, 2.0], (0.5, 2)),
        ([0.4, 1.0], [1.0, 2.0], (1, 1)),
    ],
)
def test_one_part_that_knows_one_step_is_enough(
    codec: list[float] | None, segmenter: list[float] | None, steps: tuple[float, float]
) -> None:
    crops, own = ({} if known is None else {"step_range": known} for known in (codec, segmenter))
    weights = checkpoint.Weights("compact-codec", {}, {}, {"settings": {"crops": crops}})
    latent = checkpoint.Weights("compact-latent", {}, {}, {"settings": {"codec": "ab", "segmenter": own}})
    rgb = checkpoint.Weights("compact-rgb", {}, {}, {"settings": {"codec": ""}})
    assert bundle_steps(weights, {"segmenter": latent, "rgb_segmenter": rgb}) == steps


def test_steps_without_the_codecs_own_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "codec", "compact-codec", TINY, {"codec": {"step_range": [1.5, 3.0]}})
    assert main(["export", "--codec", str(tmp_path / "codec"), "-o", str(tmp_path / "out"), "-q"]) == 4
    assert "the codec for 1.5 to 3; expected ranges that all hold 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_offers_the_steps_that_it_is_told(work: Path, tmp_path: Path) -> None:
    argv = ["export", "--codec", str(work / "codec"), "-o", str(tmp_path / "out"), "-q", "--steps"]
    assert main([*argv, "0.25", "6"]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["codec"]["steps"] == {"lo": 0.25, "hi": 6.0}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (("1.5", "3"), "expected a range with 1 in it"),
        (("3", "0.5"), "wants 0 < LO <= HI"),
        (("nan", "2"), "wants 0 < LO <= HI"),
        (("0.5", "1e9"), "expected 0.001 to 1000"),
    ],
)
def test_export_refuses_steps_that_no_bundle_has(
    work: Path, steps: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--codec", str(work / "codec"), "-o", str(tmp_path / "out"), "--steps", *steps]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
