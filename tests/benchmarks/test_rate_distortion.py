"""Rate and distortion against bytes and errors worked out here, and the script end to end on tiny images."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import _tiny_bundle as tiny
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from latentseg.benchmarks import rate_distortion as rd
from latentseg.kernels import entropy

if TYPE_CHECKING:
    from latentseg.engine.bundle import Bundle


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    sizes = ((24, 32), (17, 40), (31, 16))  # a data set may mix sizes
    return [rng.integers(0, 256, size=(*size, 3)).astype(np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def folder(images: list[NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    for number, image in enumerate(images):
        Image.fromarray(image).save(path / f"{number}.png")
    return path


def test_learned_codec_by_hand(images: list[NDArray[np.uint8]], tiny_bundle: Bundle) -> None:
    with ExitStack() as stack:
        points = list(rd.learned_points("tiny", tiny_bundle, stack, threads=1))
        rows = rd.measure_points(points, images)
    assert [row["setting"]["coder"] for row in rows] == ["context", "huffman-frame"]
    bpp, psnr, ssim = [], [], []
    for image in images:
        symbols = tiny.symbols(image[None])[0]
        decoded = symbols.transpose(1, 2, 0).repeat(8, axis=0).repeat(8, axis=1)[: image.shape[0], : image.shape[1]]
        payload = entropy.encode_symbols(symbols, tiny_bundle.header(*image.shape[:2]), implementation="numpy")
        bpp.append(8 * (len(payload) + 28) / (image.shape[0] * image.shape[1]))  # 28: docs/format.md, frame header
        error = np.mean((decoded.astype(float) - image) ** 2)
        psnr.append(10 * np.log10(255**2 / error))
        ssim.append(
            structural_similarity(
                image, decoded, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
    assert rows[0]["images"] == 3
    assert rows[0]["bpp"] == pytest.approx(np.mean(bpp))
    assert rows[0]["compression_factor"] == pytest.approx(24 / np.mean(bpp))
    assert rows[0]["psnr"] == rows[1]["psnr"] == pytest.approx(np.mean(psnr))
    assert rows[0]["ssim"] == rows[1]["ssim"] == pytest.approx(np.mean(ssim))
    assert rows[0]["bpp"] != rows[1]["bpp"]


def test_jpeg_by_hand(images: list[NDArray[np.uint8]]) -> None:
    rows = rd.measure_points(list(rd.jpeg_points([30])), images)
    assert [row["codec"] for row in rows] == ["JPEG 4:2:0", "JPEG 4:4:4"]
    for row, subsampling in zip(rows, (2, 0), strict=True):
        bpp, psnr = [], []
        for image in images:
            target = io.BytesIO()
            Image.fromarray(image).save(target, "JPEG", quality=30, subsampling=subsampling, optimize=True)
            bpp.append(8 * len(target.getvalue()) / (image.shape[0] * image.shape[1]))
            decoded = np.asarray(Image.open(target)).astype(float)
            psnr.append(10 * np.log10(255**2 / np.mean((decoded - image) ** 2)))
        assert row["bpp"] == pytest.approx(np.mean(bpp))
        assert row["psnr"] == pytest.approx(np.mean(psnr))


def test_exact_images_have_no_psnr(images: list[NDArray[np.uint8]]) -> None:
    (row,) = rd.measure_points([rd.Point("raw", "jpeg", {"quality": 0}, lambda frame: (frame.size, frame))], images)
    assert row["psnr"] is None
    assert row["ssim"] == pytest.approx(1.0)
    assert row["bpp"] == pytest.approx(24.0)
    assert "-" in rd.text([row])


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg_points, webp_points = rd.jpeg_points, rd.webp_points
    monkeypatch.setattr(rd, "jpeg_points", lambda: jpeg_points([5, 50]))
    monkeypatch.setattr(rd, "webp_points", lambda: webp_points([5, 50]))


@pytest.mark.usefixtures("small_grid")
def test_script(folder: Path, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, plot = tmp_path / "rows.jsonl", tmp_path / "rd.png"
    words = ["--codec", f"tiny={tiny_bundle.path}", "--images", f"a={folder}", "--images", str(folder), "--webp"]
    assert rd.main([*words, "--threads", "1", "--record", str(record), "--plot", str(plot)]) == 0
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(rows) == 2 * (2 + 4 + 2)
    assert {row["data"] for row in rows} == {"a", folder.name}
    assert {row["type"] for row in rows} == {"rate-distortion"}
    assert all(row["machine"]["cpu"] and row["versions"]["pillow"] for row in rows)
    assert rows[0]["setting"]["rate_model_bpp"] is None
    assert str(folder) not in record.read_text()
    printed = capsys.readouterr().out
    assert "a: 3 images" in printed
    assert "JPEG 4:4:4" in printed
    for name in ("a", folder.name):
        with Image.open(tmp_path / f"rd-{name}.png") as image:
            assert image.format == "PNG"
            assert image.width > 800


def test_script_s_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rd.main(["--images", str(tmp_path)]) == 3
    assert "holds no images" in capsys.readouterr().err
    assert rd.main(["--images", str(tmp_path / "no")]) == 3
    assert "no such folder" in capsys.readouterr().err
    assert rd.main(["--images", str(tmp_path), "--codec", "nothing-of-that-name"]) == 2
    assert "no bundle named" in capsys.readouterr().err


def test_other_steps_where_the_bundle_knows_them(images: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    bundle = tiny.write_tiny_bundle(tmp_path / "many", steps=(0.5, 2.0))
    with ExitStack() as stack:
        points = list(rd.learned_points("tiny", bundle, stack, threads=1, steps=(0.25, 0.5, 1.0, 2.0, 3.0)))
        rows = rd.measure_points(points, images)
    shown = [(row["setting"]["coder"], row["setting"]["step"]) for row in rows]
    assert shown == [("context", 1.0), ("huffman-frame", 1.0), ("context", 0.5), ("context", 2.0)]
    for row, step in ((rows[2], 0.5), (rows[3], 2.0)):
        rates = []
        for image in images:
            header = bundle.header(*image.shape[:2], step=step)
            payload = entropy.encode_symbols(tiny.symbols(image[None], step)[0], header, implementation="numpy")
            rates.append(8 * (len(payload) + 28) / (image.shape[0] * image.shape[1]))
        assert row["bpp"] == pytest.approx(np.mean(rates))
