"""Engine files and their sidecars: what is written reads back; every lie has its own message and its command."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _tiny_bundle import write_tiny_bundle

from latentseg.engine.backends.base import TensorSpec
from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt import gpus, sidecar
from latentseg.engine.tensorrt.sidecar import EngineFile, Profile
from latentseg.errors import ArtifactError, BackendMissingError, InputError, OutputError, UsageError

ENGINE = b"an engine, as far as this module knows"
NAME = "segmenter-fp32-tensorrt-rtx"
BUILD = "latentseg build tiny --target tensorrt-rtx --role segmenter --precision fp32"
PROFILE = "--profile 1x8x8:2x24x16:4x64x40"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny")


def facts(bundle: Bundle, data: bytes = ENGINE, **changes: Any) -> EngineFile:
    file = EngineFile(
        bundle="tiny", role="segmenter", precision="fp32", flavour="tensorrt-rtx", version="1.7.1.116",
        model_sha256=hashlib.sha256((bundle.path / "segmenter.onnx").read_bytes()).hexdigest(),
        onnx_sha256="0" * 64, source="bundle",
        engine_sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), archs=(80, 89),
        profile=Profile((1, 3, 1, 1), (2, 3, 3, 2), (4, 3, 8, 5)), frames=Profile((1, 8, 8), (2, 24, 16), (4, 64, 40)),
        input=TensorSpec("latent", np.dtype(np.float32), (None, 3, None, None)),
        output=TensorSpec("labels", np.dtype(np.uint8), (None, None, None)),
        network={"layers": 5}, verification={"label_agreement": 0.999},
    )  # fmt: skip
    return replace(file, **changes)


def written(bundle: Bundle, **changes: Any) -> Path:
    return sidecar.write_engine(bundle.path / "engines", ENGINE, facts(bundle, **changes))


# --- written and read -------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back(bundle: Bundle) -> None:
    path = written(bundle)
    assert path == bundle.path / "engines" / f"{NAME}.engine"
    assert path.read_bytes() == ENGINE  # byte-pure: what describes it lies beside it
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{NAME}.engine", f"{NAME}.json"]
    file = sidecar.read_engine(path)
    assert file == facts(bundle)
    assert sidecar.engine_bytes(path, file) == ENGINE
    raw = json.loads(path.with_suffix(".json").read_text())
    assert (raw["schema"], raw["archs"], raw["profile"]["maximum"]) == (1, [80, 89], [4, 3, 8, 5])
    assert raw["input"] == {"name": "latent", "dtype": "float32", "shape": [None, 3, None, None]}
    assert raw["created_by"].startswith("latentseg ")
    assert sidecar.find_engine(bundle, "segmenter", "fp32") == path
    assert sidecar.find_engine(bundle, "segmenter", "fp32", "tensorrt-rtx", "1.7.1.116", 89) == path


def test_an_engine_is_replaced_only_when_asked_and_takes_its_old_cache_along(bundle: Bundle) -> None:
    path = written(bundle)
    for suffix in (".timing", ".runtime"):
        path.with_suffix(suffix).write_bytes(b"cache")
    with pytest.raises(UsageError, match="the engine exists"):
        written(bundle)
    other = b"another engine"
    sidecar.write_engine(path.parent, other, facts(bundle, other), overwrite=True)
    assert sidecar.engine_bytes(path, sidecar.read_engine(path)) == other
    assert not path.with_suffix(".runtime").exists()  # of the engine that is gone
    assert path.with_suffix(".timing").exists()  # of the machine: the next build is faster for it


def test_a_build_that_stops_half_way_leaves_no_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(bundle)
    replace_file = sidecar._replace

    def full(target: Path, data: bytes) -> None:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        replace_file(target, data)

    monkeypatch.setattr(sidecar, "_replace", full)
    with pytest.raises(OutputError, match="No space left"):
        sidecar.write_engine(path.parent, ENGINE + b"2", facts(bundle, ENGINE + b"2"), overwrite=True)
    with pytest.raises(ArtifactError, match="has no sidecar") as caught:
        sidecar.find_engine(bundle, "segmenter", "fp32")
    assert caught.value.hint == f"latentseg build {bundle.path} {BUILD.split(' tiny ')[1]} --overwrite"


def test_facts_that_do_not_fit_the_engine_are_not_written(bundle: Bundle) -> None:
    with pytest.raises(ArtifactError, match="does not describe"):
        sidecar.write_engine(bundle.path / "engines", ENGINE + b"x", facts(bundle))
    with pytest.raises(ArtifactError, match="'archs' is"):
        written(bundle, archs=())
    assert not (bundle.path / "engines").exists()


# --- lies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", 2, "schema 2 is newer than this program knows, expected at most 1"),
        ("schema", None, "'schema' is missing, expected an integer >= 1"),
        ("role", "teacher", "'role' is 'teacher', expected one of compressor, decompressor, segmenter, rgb_segmenter"),
        ("role", "rgb_segmenter", "describes rgb_segmenter-fp32-tensorrt-rtx.engine, expected segmenter-fp32"),
        ("precision", "fp8", "'precision' is 'fp8', expected one of fp32, fp16, int8"),
        ("precision", "int8", f"describes segmenter-int8-tensorrt-rtx.engine, expected {NAME}.engine"),
        ("flavour", "tensorflow", "'flavour' is 'tensorflow', expected one of tensorrt, tensorrt-rtx"),
        ("version", "", "'version' is empty, expected a string"),
        ("model_sha256", "0" * 63, "expected 64 lower-case hex digits (SHA-256)"),
        ("onnx_sha256", "A" * 64, "expected 64 lower-case hex digits (SHA-256)"),
        ("source", "sky", "'source' is 'sky', expected one of bundle, frames"),
        ("engine_sha256", 5, "'engine_sha256' is 5 (int), expected a string"),
        ("bytes", len(ENGINE) - 1, f"has {len(ENGINE)} bytes, expected {len(ENGINE) - 1}"),
        ("bytes", True, "'bytes' is True (bool), expected an integer >= 1"),
        ("archs", [], "'archs' is [], expected compute capabilities such as 89, at least one"),
        ("archs", [8.9], "'archs' is [8.9], expected compute capabilities such as 89, at least one"),
        ("profile.minimum", [1, 3, 1], "'profile.minimum' is [1, 3, 1], expected 4 sizes of at least 1"),
        ("profile.minimum", [1, 2, 1, 1], "expected a shape that latent: float32[?, 3, ?, ?] allows"),
        ("profile.optimum", [2, 3, 9, 2], "'profile.optimum' is (2, 3, 9, 2), expected sizes from (1, 3, 1, 1) to"),
        ("frames.maximum", [4, 0, 40], "'frames.maximum' is [4, 0, 40], expected 3 sizes of at least 1"),
        ("input.dtype", "float64", "'input.dtype' is 'float64', expected one of uint8, float32, float16"),
        ("input.shape", [None, -1], "'input.shape' is [None, -1], expected sizes of at least 1, null where free"),
        ("output.name", None, "'output.name' is missing, expected a string"),
        ("network", [], "'network' is [] (list), expected an object"),
        ("network.layers", -1, "'network.layers' is -1, expected an integer >= 0"),
        ("verification", None, "'verification' is missing, expected an object"),
        ("created_by", None, "'created_by' is missing, expected a string"),
    ],
)
def test_every_lie_of_a_sidecar_has_its_message(bundle: Bundle, key: str, value: Any, words: str) -> None:
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
        sidecar.read_engine(path)
    assert words in str(caught.value)
    assert caught.value.exit_code == 4
    upgrade = "pip install --upgrade latentseg"
    again = "latentseg build BUNDLE --target tensorrt-rtx --role segmenter --precision fp32 --overwrite"
    assert caught.value.hint == (upgrade if "newer" in words else again)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not valid JSON"),
        (b"[]", "the whole file is list, expected an object"),
        (b"\xff", "is not valid JSON"),
    ],
)
def test_a_sidecar_that_is_none(bundle: Bundle, content: bytes, words: str) -> None:
    path = written(bundle)
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(ArtifactError, match=words.replace("(", r"\(")):
        sidecar.read_engine(path)


def test_a_sidecar_that_cannot_be_read(bundle: Bundle) -> None:
    path = written(bundle)
    path.with_suffix(".json").unlink()
    path.with_suffix(".json").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        sidecar.read_engine(path)


def test_a_changed_engine_is_found_by_its_hash(bundle: Bundle) -> None:
    path = written(bundle)
    path.write_bytes(ENGINE[:-1] + b"!")
    with pytest.raises(
        ArtifactError, match=f"was changed: SHA-256 is [0-9a-f]{{64}}, expected {facts(bundle).engine_sha256}"
    ):
        sidecar.find_engine(bundle, "segmenter", "fp32")


def test_an_engine_that_is_not_there_names_its_build(bundle: Bundle) -> None:
    with pytest.raises(ArtifactError, match="'tiny' has no TensorRT-RTX engine of its segmenter in fp32") as caught:
        sidecar.find_engine(bundle, "segmenter", "fp32", "tensorrt-rtx")
    assert caught.value.hint == f"latentseg build {bundle.path} {BUILD.split(' tiny ')[1]}"
    with pytest.raises(ArtifactError) as caught:
        sidecar.find_engine(bundle, "segmenter", "int8", "tensorrt")
    assert caught.value.hint.endswith("--target tensorrt --role segmenter --precision int8 --frames FOLDER")
    for wrong in (("teacher", "fp32", None), ("segmenter", "fp8", None), ("segmenter", "fp32", "cuda")):
        with pytest.raises(UsageError, match="expected one of"):
            sidecar.find_engine(bundle, *wrong)


def test_of_two_flavours_the_installed_one_is_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx, full = written(bundle), written(bundle, flavour="tensorrt", archs=(90,))
    for installed, expected in (({"tensorrt-rtx"}, rtx), ({"tensorrt"}, full), ({"tensorrt", "tensorrt-rtx"}, full)):
        monkeypatch.setattr(sidecar, "is_installed", lambda flavour, there=installed: flavour in there)
        assert sidecar.find_engine(bundle, "segmenter", "fp32") == expected


# --- the machine and the bundle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "words", "hint"),
    [
        (
            ("tensorrt-rtx", "1.8.0.1", 89),
            "was built by TensorRT-RTX 1.7.1.116, this machine has 1.8.0.1",
            f"{BUILD} {PROFILE} --arch 80 89 --overwrite",
        ),
        (
            ("tensorrt-rtx", "1.7.1.116", 120),
            "was built for compute capability 8.0, 8.9, this GPU has 12.0",
            f"{BUILD} {PROFILE} --arch 80 89 120 --overwrite",
        ),
        (
            ("tensorrt-rtx", "1.7.1.116", 90),
            "this GPU has 9.0, which TensorRT-RTX offers no target for (7.5, 8.0, 8.6, 8.9, 12.0, 12.1)",
            f"latentseg build tiny --target tensorrt --role segmenter --precision fp32 {PROFILE} --overwrite",
        ),
        (
            ("tensorrt", "10.13.0.35", 89),
            "is a TensorRT-RTX engine, and would be loaded by TensorRT",
            f"latentseg build tiny --target tensorrt --role segmenter --precision fp32 {PROFILE} --overwrite",
        ),
    ],
)
def test_an_engine_of_another_machine(bundle: Bundle, machine: tuple[str, str, int], words: str, hint: str) -> None:
    file = facts(bundle)
    sidecar.check_machine(file, "tensorrt-rtx", "1.7.1.116", 80)
    with pytest.raises(ArtifactError) as caught:
        sidecar.check_machine(file, *machine)
    assert words in str(caught.value)
    assert caught.value.hint == hint


def test_a_full_engine_is_built_again_without_targets_and_with_frames(bundle: Bundle) -> None:
    file = facts(bundle, flavour="tensorrt", archs=(80,), precision="int8", source="frames")
    with pytest.raises(ArtifactError, match=r"for compute capability 8\.0, this GPU has 8\.9") as caught:
        sidecar.check_machine(file, "tensorrt", file.version, 89, "a bundle")
    assert caught.value.hint == (
        "latentseg build 'a bundle' --target tensorrt --role segmenter --precision int8 --frames FOLDER "
        f"{PROFILE} --overwrite"
    )


def test_the_machine_is_compared_before_the_engine_is_read(bundle: Bundle) -> None:
    path = written(bundle)
    path.write_bytes(b"?" * len(ENGINE))
    with pytest.raises(ArtifactError, match="this machine has 9"):
        sidecar.find_engine(bundle, "segmenter", "fp32", version="9", capability=89)


def test_an_engine_of_another_model(bundle: Bundle) -> None:
    written(bundle, model_sha256="5" * 64)
    with pytest.raises(ArtifactError, match="built from another model: SHA-256 5555555555555555") as caught:
        sidecar.find_engine(bundle, "segmenter", "fp32")
    assert caught.value.hint == f"{BUILD.replace(' tiny ', f' {bundle.path} ')} {PROFILE} --arch 80 89 --overwrite"


def test_a_profile_admits_what_lies_within() -> None:
    profile = facts_profile = Profile((1, 3, 1, 1), (2, 3, 3, 2), (4, 3, 8, 5))
    assert str(facts_profile) == "1x3x1x1:2x3x3x2:4x3x8x5"
    assert profile.admits((1, 3, 1, 1))
    assert profile.admits((4, 3, 8, 5))
    for wrong in ((5, 3, 8, 5), (1, 3, 1, 6), (1, 2, 1, 1), (0, 3, 1, 1), (1, 3, 1)):
        assert not profile.admits(wrong)


# --- the GPUs ---------------------------------------------------------------------------------------------------------


def fake_cuda(devices: int = 1, error: int = 0) -> Any:
    """`cuda.bindings.driver` as far as it is asked."""
    return SimpleNamespace(
        CUdevice_attribute=SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
        ),
        cuInit=lambda flags: (error,),
        cuDriverGetVersion=lambda: (0, 12080),
        cuDeviceGetCount=lambda: (0, devices),
        cuDeviceGet=lambda index: (0, index),
        cuDeviceGetAttribute=lambda attribute, device: (0, {"major": 8 + device, "minor": 9}[attribute]),
        cuDeviceGetName=lambda size, device: (0, b"GPU %d" % device + b"\0" * (size - 5)),
        cuDeviceTotalMem=lambda device: (0, 24 << 30),
    )


def test_gpus_are_asked_of_the_driver() -> None:
    found = gpus.find_gpus(fake_cuda(devices=2))
    assert [(g.name, g.capability, g.memory) for g in found.devices] == [
        ("GPU 0", 89, 24 << 30),
        ("GPU 1", 99, 24 << 30),
    ]
    assert (found.cuda, found.reason) == ("12.8", "")
    assert gpus.this_gpu(fake_cuda()).capability == 89


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(fake_cuda(devices=0), "the driver knows no GPU"), (fake_cuda(error=100), "(cuInit failed: 100)")],
)
def test_a_machine_without_a_gpu_says_why(cuda: Any, reason: str) -> None:
    assert gpus.find_gpus(cuda).devices == ()
    with pytest.raises(BackendMissingError) as caught:
        gpus.this_gpu(cuda)
    assert reason in str(caught.value)
