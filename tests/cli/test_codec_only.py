"""A bundle of a codec alone: encode and decode work, every verb that needs a segmenter says so and writes nothing."""

from __future__ import annotations

from pathlib import Path

import _tiny_bundle as tiny
import numpy as np
import pytest
from _clip import FRAMES, clip
from PIL import Image

from latentseg import cli
from latentseg.engine.bundle import load_bundle, write_bundle
from latentseg.errors import ArtifactError


@pytest.fixture(scope="module")
def codec_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle without its segmenters, and so without classes."""
    whole = tiny.write_tiny_bundle(tmp_path_factory.mktemp("whole"))
    models = {role: (whole.model_path(role), 1.0, 0) for role in ("compressor", "decompressor")}
    path = tmp_path_factory.mktemp("codec-only")
    bundle = write_bundle(path, "codec-only", whole.codec, models, [])
    assert (bundle.roles, bundle.classes) == (("compressor", "decompressor"), [])
    return path


def test_encode_and_decode(folder: Path, codec_only: Path, tmp_path: Path) -> None:
    options = ["--bundle", str(codec_only), "--threads", "1", "-q"]
    stream, pictures, video = tmp_path / "x.lseg", tmp_path / "pictures", tmp_path / "x.mp4"
    assert cli.main(["encode", str(folder), "-o", str(stream), *options]) == 0
    assert cli.main(["decode", str(stream), "-o", str(pictures), *options]) == 0
    assert cli.main(["decode", str(stream), "-o", str(video), *options]) == 0
    assert video.stat().st_size > 0
    found = np.stack([np.asarray(Image.open(path)) for path in sorted(pictures.iterdir())])
    means = tiny.symbols(clip()).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)
    np.testing.assert_array_equal(found, means[:, : found.shape[1], : found.shape[2]])
    assert len(found) == FRAMES


@pytest.mark.parametrize("verb", ["run", "run a stream", "bench", "demo"])
def test_what_needs_a_segmenter_says_so(
    verb: str, folder: Path, stream: Path, codec_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = {
        "run": ["run", str(folder), "--labels", str(out)],
        "run a stream": ["run", str(stream), "--labels", str(out)],
        "bench": ["bench", str(folder), "--frames", "2"],
        "demo": ["demo", "--source", str(folder), "--out", str(out)],
    }[verb]
    assert cli.main([*arguments, "--bundle", str(codec_only), "--threads", "1"]) == 4
    found = capsys.readouterr()
    for words in ("a segmenter", "only compressor, decompressor", "hint: "):
        assert words in found.err
    assert found.out == ""
    assert not out.exists()


def test_a_codec_that_cannot_decode_says_so(stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_tiny_bundle(tmp_path / "b", ("compressor",))
    assert cli.main(["decode", str(stream), "-o", str(tmp_path / "p"), "--bundle", str(tmp_path / "b")]) == 4
    assert "has no decompressor, only compressor" in capsys.readouterr().err


def test_inspect(codec_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(codec_only)]) == 0
    assert "none: a codec alone" in capsys.readouterr().out


def test_a_segmenter_needs_classes(tmp_path: Path) -> None:
    whole = tiny.write_tiny_bundle(tmp_path / "whole")
    models = {role: (whole.model_path(role), 1.0, 0) for role in ("compressor", "segmenter")}
    with pytest.raises(ArtifactError, match="'classes' is 0 entries, expected 1 to 256"):
        write_bundle(tmp_path / "none", "none", whole.codec, models, [])
    assert load_bundle(tmp_path / "whole").classes
