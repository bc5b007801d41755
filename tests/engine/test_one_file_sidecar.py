"""Sidecars of one-file engines: what is written reads back, every lie has its message, neither kind is the other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tiny_bundle import write_tiny_bundle

from latentseg.engine.backends.base import TensorSpec
from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt import sidecar
from latentseg.engine.tensorrt.sidecar import OneFileEngine, Profile
from latentseg.errors import ArtifactError, UsageError
from latentseg.kernels.gpu.one_file import DecodeSpec

ENGINE = b"an engine, as far as this module knows"
NAME = "segmenter-fp32-tensorrt-33x50.one-file"
BUILD = "latentseg build tiny --target tensorrt --one-file --size 33x50 --batch 4 --precision fp32 --overwrite"
INT32 = np.dtype(np.int32)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def facts(bundle: Bundle, **changes: Any) -> OneFileEngine:
    """Frames of 33x50 are latents of 5x7 in one tile; the fixed range is one a frame."""
    file = OneFileEngine(
        bundle="tiny", role="segmenter", precision="fp32", flavour="tensorrt", version="10.13.3.9",
        model_sha256=hashlib.sha256((bundle.path / "segmenter.onnx").read_bytes()).hexdigest(),
        onnx_sha256="0" * 64, source="bundle", engine_sha256=hashlib.sha256(ENGINE).hexdigest(), bytes=len(ENGINE),
        archs=(90,), frames=Profile((1, 33, 50), (4, 33, 50), (4, 33, 50)), codec_id=bundle.codec.id,
        spec=DecodeSpec.of(bundle.header(33, 50), "float32", 90),
        inputs=(
            TensorSpec("words", INT32, (None,)), TensorSpec("lanes", INT32, (None, 1, 3, 2)),
            TensorSpec("channels", INT32, (None, 3)), TensorSpec("ranges", np.dtype(np.float32), (None, 1, 2)),
        ),
        outputs=(TensorSpec("labels", np.dtype(np.uint8), (None, 40, None)), TensorSpec("damaged", INT32, (None,))),
        profiles={
            "words": Profile((1,), (20,), (90,)), "lanes": Profile((1, 1, 3, 2), (4, 1, 3, 2), (4, 1, 3, 2)),
            "channels": Profile((1, 3), (4, 3), (4, 3)), "ranges": Profile((1, 1, 2), (4, 1, 2), (4, 1, 2)),
        },
        kernel={"entry": "decode", "ptx": "8.7", "target": "sm_90a", "warps": 1, "shared": 64, "registers": 9},
        network={"layers": 5}, verification={"label_agreement": 0.999},
    )  # fmt: skip
    return replace(file, **changes)


def written(bundle: Bundle, **changes: Any) -> Path:
    return sidecar.write_engine(bundle.path / "engines", ENGINE, facts(bundle, **changes))


def test_what_is_written_reads_back(bundle: Bundle) -> None:
    path = written(bundle)
    assert path == bundle.path / "engines" / f"{NAME}.engine"
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{NAME}.engine", f"{NAME}.json"]
    file = sidecar.read_one_file(path)
    assert file == sidecar.read_any_engine(path) == facts(bundle)
    assert (file.size, file.spec.tile) == ((33, 50), bundle.codec.tile)
    assert sidecar.engine_bytes(path, file) == ENGINE
    sidecar.check_bundle(file, bundle)
    sidecar.check_machine(file, "tensorrt", "10.13.3.9", 90)
    # A reader of the JSON alone has all that it takes to feed the engine.
    raw = json.loads(path.with_suffix(".json").read_text())
    assert raw["one_file"]["stream"] == {
        "codec_id": bundle.codec.id.hex(), "bits": 8, "tile": list(bundle.codec.tile), "latent": [3, 5, 7],
        "ranges_a_frame": 1, "floats": "float32", "payload_limit": file.spec.payload_limit,
    }  # fmt: skip
    assert raw["one_file"]["inputs"]["lanes"] == {
        "dtype": "int32", "shape": [None, 1, 3, 2],
        "profile": {"minimum": [1, 1, 3, 2], "optimum": [4, 1, 3, 2], "maximum": [4, 1, 3, 2]},
    }  # fmt: skip
    assert raw["one_file"]["outputs"]["damaged"] == {"dtype": "int32", "shape": [None]}
    assert raw["one_file"]["kernel"]["name"] == file.spec.name
    assert raw["frames"]["maximum"] == [4, 33, 50]
    with pytest.raises(UsageError, match="the engine exists"):
        written(bundle)


def test_neither_kind_is_taken_for_the_other(bundle: Bundle) -> None:
    path = written(bundle)
    with pytest.raises(ArtifactError, match=r"has no TensorRT.* engine of its segmenter in fp32"):
        sidecar.find_engine(bundle, "segmenter", "fp32")
    with pytest.raises(ArtifactError, match="is a one-file engine, from bytes to labels") as caught:
        sidecar.read_engine(path)
    assert "docs/tensorrt.md" in caught.value.hint
    assert caught.value.hint.endswith(
        "latentseg build BUNDLE --target tensorrt --role segmenter --precision fp32 --overwrite"
    )
    # Not by its name either.
    for suffix in (".engine", ".json"):
        path.with_suffix(suffix).rename(path.parent / f"segmenter-fp32-tensorrt{suffix}")
    with pytest.raises(ArtifactError, match=rf"describes {NAME}\.engine, expected segmenter-fp32-tensorrt\.engine"):
        sidecar.find_engine(bundle, "segmenter", "fp32")


def test_a_models_engine_is_no_one_file_engine(bundle: Bundle) -> None:
    file = facts(bundle)
    shared = {key: getattr(file, key) for key in sidecar.EngineFile.__dataclass_fields__ if hasattr(file, key)}
    latent = TensorSpec("latent", np.dtype(np.float32), (None, 3, None, None))
    model = sidecar.EngineFile(
        **shared, input=latent, output=file.outputs[0], profile=Profile((1, 3, 5, 7), (4, 3, 5, 7), (4, 3, 5, 7))
    )
    path = sidecar.write_engine(bundle.path / "engines", ENGINE, model)
    assert sidecar.find_engine(bundle, "segmenter", "fp32") == path
    assert sidecar.read_any_engine(path) == model
    with pytest.raises(ArtifactError, match="is an engine of the segmenter alone") as caught:
        sidecar.read_one_file(path)
    assert "--one-file --size 33x50 --precision fp32" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", 2, "schema 2 is newer than this program knows, expected at most 1"),
        ("role", "rgb_segmenter", "'role' is 'rgb_segmenter', expected one of segmenter"),
        ("flavour", "tensorrt-rtx", "'flavour' is 'tensorrt-rtx', expected one of tensorrt"),
        ("archs", [89], "'archs' is [89], expected [90], its kernel's"),
        ("frames.minimum", [1, 8, 8], "expected one frame size: a one-file engine takes no other"),
        ("frames.maximum", [5, 33, 50], "expected batches of (1, 4, 5), as in 'frames'"),
        ("one_file", [], "'one_file' is [] (list), expected an object"),
        ("one_file.stream", None, "'one_file.stream' is missing, expected an object"),
        ("one_file.stream.codec_id", "0", "'one_file.stream.codec_id' is '0', expected 64 lower-case hex digits"),
        ("one_file.stream.bits", 9, "'one_file.stream.bits' is 9, expected an integer from 1 to 8"),
        ("one_file.stream.tile", [14], "'one_file.stream.tile' is [14], expected 2 sizes of at least 1"),
        ("one_file.stream.latent", [3, 5, 0], "'one_file.stream.latent' is [3, 5, 0], expected 3 sizes of at least 1"),
        ("one_file.stream.latent", [3, 6, 7], "'one_file.kernel.name' is 'ContextDecode_8b"),
        ("one_file.stream.ranges_a_frame", 2, "'one_file.stream.ranges_a_frame' is 2, expected 1 or 3"),
        ("one_file.stream.floats", "bfloat16", "is 'bfloat16', expected one of float32, float16"),
        ("one_file.stream.payload_limit", 0, "'one_file.stream.payload_limit' is 0, expected an integer >= 1"),
        ("one_file.kernel.arch", 89, "'one_file.kernel.name' is 'ContextDecode_8b"),
        ("one_file.kernel.registers", -1, "'one_file.kernel.registers' is -1, expected an integer >= 0"),
        ("one_file.kernel.entry", None, "'one_file.kernel.entry' is missing, expected a string"),
        ("one_file.inputs.words", None, "'one_file.inputs.words' is missing, expected an object"),
        ("one_file.inputs.words.dtype", "uint8", "'one_file.inputs.words.dtype' is 'uint8', expected one of int32"),
        ("one_file.inputs.lanes.shape", [None, 2, 3, 2], "expected lanes: int32[?, 1, 3, 2]"),
        ("one_file.inputs.ranges.shape", [None, 1], "expected ranges: float32[?, 1, 2]"),
        ("one_file.inputs.channels.profile.minimum", [1, 2], "expected a shape that channels: int32[?, 3] allows"),
        ("one_file.inputs.words.profile.optimum", [99], "is (99,), expected sizes from (1,) to (90,)"),
        ("one_file.outputs.labels", None, "'one_file.outputs' is damaged, expected labels and damaged"),
        ("one_file.outputs.damaged", None, "'one_file.outputs' is labels, expected labels and damaged"),
        ("one_file.outputs.labels.dtype", "int32", "'one_file.outputs.labels.dtype' is 'int32', expected one of uint8"),
        ("one_file.outputs.damaged.shape", [None, 1], "expected damaged: int32[?]"),
        ("precision", "int8", f"describes segmenter-int8-tensorrt-33x50.one-file.engine, expected {NAME}.engine"),
        ("bytes", 5, f"has {len(ENGINE)} bytes, expected 5"),
    ],
)
def test_every_lie_has_its_message(bundle: Bundle, key: str, value: Any, words: str) -> None:
    path = written(bundle)
    raw = json.loads(path.with_suffix(".json").read_text())
    *sections, last = key.split(".")
    section = raw
    for name in sections:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    path.with_suffix(".json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError) as caught:
        sidecar.read_one_file(path)
    assert words in str(caught.value)
    again = "latentseg build BUNDLE --target tensorrt --one-file --size 33x50 --precision fp32 --overwrite"
    assert caught.value.hint == ("pip install --upgrade latentseg" if "newer" in words else again)


def test_facts_that_do_not_read_back_are_not_written(bundle: Bundle) -> None:
    with pytest.raises(ArtifactError, match="its kernel's"):
        written(bundle, archs=(89,))
    with pytest.raises(ArtifactError, match="does not describe"):
        written(bundle, bytes=3)
    assert not (bundle.path / "engines").exists()


@pytest.mark.parametrize(
    ("machine", "words", "hint"),
    [
        (("tensorrt", "10.14", 90), "was built by TensorRT 10.13.3.9, this machine has 10.14", BUILD),
        (("tensorrt", "10.13.3.9", 89), "was built for compute capability 9.0, this GPU has 8.9", BUILD),
        (
            ("tensorrt-rtx", "1.7.1.116", 90),
            "is a TensorRT engine, and would be loaded by TensorRT-RTX",
            "latentseg build tiny --target tensorrt-rtx --role segmenter --precision fp32 "
            "--profile 1x33x50:4x33x50:4x33x50 --overwrite",
        ),
    ],
)
def test_an_engine_of_another_machine(bundle: Bundle, machine: tuple[str, str, int], words: str, hint: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        sidecar.check_machine(facts(bundle), *machine, "tiny")
    assert words in str(caught.value)
    assert caught.value.hint == hint


def test_an_engine_of_another_model_or_with_frames_names_its_build(bundle: Bundle) -> None:
    file = facts(bundle, model_sha256="5" * 64, source="frames", precision="int8")
    with pytest.raises(ArtifactError, match="built from another model: SHA-256 5555555555555555") as caught:
        sidecar.check_bundle(file, bundle)
    assert caught.value.hint.endswith("--size 33x50 --batch 4 --precision int8 --frames FOLDER --overwrite")
    path = written(bundle)
    path.write_bytes(ENGINE[:-1] + b"!")
    with pytest.raises(ArtifactError, match="was changed: SHA-256 is"):
        sidecar.engine_bytes(path, sidecar.read_one_file(path))
