"""Bundles: what loads, and every lie that a manifest or a folder can tell."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _tiny_bundle import CLASSES, write_tiny_bundle

from latentseg.bitstream import Scaling
from latentseg.engine import bundle as bundle_module
from latentseg.engine.bundle import Bundle, add_variant, load_bundle, write_bundle
from latentseg.errors import ArtifactError, InputError, OutputError, UsageError


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit(folder: Path, where: str, value: Any) -> None:
    """Set one key of the manifest, "a.b.0.c" style; the value `...` deletes it."""
    file = folder / "manifest.json"
    raw = json.loads(file.read_text())
    *parents, last = where.split(".")
    target = raw
    for key in parents:
        target = target[int(key)] if isinstance(target, list) else target[key]
    if value is ...:
        del target[last]
    else:
        target[int(last) if isinstance(target, list) else last] = value
    file.write_text(json.dumps(raw))


def test_loads_what_was_written(tiny_bundle: Bundle) -> None:
    again = load_bundle(tiny_bundle.path)
    assert again.codec == tiny_bundle.codec
    assert (again.codec.channels, again.codec.stride, again.codec.bits) == (3, 8, 8)
    assert (again.codec.scaling.mode, again.codec.scaling.lo, again.codec.scaling.hi) == ("fixed", 0.0, 255.0)
    assert (again.codec.coder, again.codec.tile) == ("context", (14, 32))
    assert again.classes == CLASSES
    assert again.roles == ("compressor", "decompressor", "segmenter", "rgb_segmenter")
    assert again.manifest["files"]["segmenter"]["bytes"] == again.model_path("segmenter").stat().st_size
    assert again.macs("segmenter", 10, 20) == 200.0
    assert again.parameters("segmenter") == 0


def test_a_codebook_is_loaded_as_it_was_written(tiny_bundle: Bundle, tmp_path: Path) -> None:
    centres = tuple(np.cumsum(np.random.default_rng(0).uniform(0.1, 1, 200)).astype(np.float32).tolist())
    codec = replace(tiny_bundle.codec, scaling=Scaling("codebook", centres=centres))
    models = {role: (tiny_bundle.model_path(role), 1.0, 0) for role in tiny_bundle.roles}
    written = write_bundle(tmp_path / "written", "books", codec, models, CLASSES)
    assert written.codec == codec
    header = written.header(16, 24)
    assert header.scaling.centres == centres
    assert (header.levels, header.size) == (200, 200 + 2 * 804)


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("schema", 2, "schema 2 is newer"),
        ("scores", {"miou": float("nan")}, "holds what JSON text cannot"),
        ("classes.0.name", "\ud800", "holds what JSON text cannot"),
        ("files.compressor.macs_per_pixel", 10**400, "expected a finite number"),
        ("codec.scaling", {"mode": "fixed", "lo": -3e38, "hi": 3e38}, "'codec.scaling.lo' is -3e+38"),
        ("classes", [], "'classes' is 0 entries, expected 1 to 256"),
        ("schema", 0, "integer >= 1"),
        ("schema", "1", "(str), expected an integer"),
        ("schema", True, "(bool), expected an integer"),
        ("schema", ..., "'schema' is missing"),
        ("name", "", "'name' is empty"),
        ("name", ..., "'name' is missing"),
        ("codec", [], "'codec' is [] (list), expected an object"),
        ("codec.id", "AB" * 32, "64 lower-case hex"),
        ("codec.id", "ab", "64 lower-case hex"),
        ("codec.channels", 0, "from 1 to 4096"),
        ("codec.channels", 8.0, "(float), expected an integer"),
        ("codec.stride", 1 << 30, "from 1 to 256"),
        ("codec.bits", 9, "from 1 to 8"),
        ("codec.coder", "word", "'word', expected one of context, huffman-channel, huffman-frame"),
        ("codec.coder", ..., "'codec.coder' is missing"),
        ("codec.coder", "huffman-frame", "'codec.tile' is [14, 32], expected [rows, columns]"),
        ("codec.tile", ..., "'codec.tile' is None, expected [rows, columns]"),
        ("codec.tile", [0, 0], "'codec.tile' is [0, 0], expected [rows, columns]"),
        ("codec.tile", [14, 0], "'codec.tile' is [14, 0], expected [rows, columns]"),
        ("codec.tile", [3, 5], "'codec.tile' is [3, 5], expected [rows, columns] of 16 to 16777216 symbols"),
        ("codec.tile", [65535, 257], "of 16 to 16777216 symbols"),
        ("codec.tile", [65536, 1], "of 16 to 16777216 symbols"),
        ("codec.tile", [-4, -4], "'codec.tile' is [-4, -4], expected [rows, columns]"),
        ("codec.tile", [14.0, 32], "'codec.tile' is [14.0, 32], expected [rows, columns]"),
        ("codec.tile", [True, 32], "'codec.tile' is [True, 32], expected [rows, columns]"),
        ("codec.tile", [14, 32, 1], "'codec.tile' is [14, 32, 1], expected [rows, columns]"),
        ("codec.tile", "14x32", "'codec.tile' is '14x32', expected [rows, columns]"),
        ("codec.scaling.mode", "log", "expected one of tensor, channel, fixed, codebook"),
        ("codec.scaling", {"mode": "codebook"}, "'codec.scaling.centres' is missing, expected a list of numbers"),
        ("codec.scaling", {"mode": "codebook", "centres": "0,1"}, "(str), expected a list of numbers"),
        ("codec.scaling", {"mode": "codebook", "centres": [0, True]}, "is [0, True], expected a list of numbers"),
        ("codec.scaling", {"mode": "codebook", "centres": [0, None]}, "is [0, None], expected a list of numbers"),
        ("codec.scaling", {"mode": "codebook", "centres": [0, 10**400]}, "'codec.scaling.centres' is refused ("),
        ("codec.scaling", {"mode": "codebook", "centres": [0, 1e39]}, "(codebook: centre 1 is inf, expected numbers"),
        ("codec.scaling", {"mode": "codebook", "centres": [1, 1]}, "and centre 0 is 1.0, expected ascending centres"),
        ("codec.scaling", {"mode": "codebook", "centres": [0, 1, 2]}, "is 3 numbers, expected 129 to 256, as 8 bits"),
        ("codec.scaling.lo", 1e9, "at most hi"),
        ("codec.scaling.hi", ..., "'codec.scaling.hi' is missing"),
        ("codec.steps", 2, "'codec.steps' is 2 (int), expected an object"),
        ("codec.steps", {"lo": 0.5}, "'codec.steps.hi' is missing, expected a number"),
        ("codec.steps", {"lo": 0, "hi": 2}, "'codec.steps.lo' is 0.0, expected 0.001 to 1, the codec's own step"),
        ("codec.steps", {"lo": 1.5, "hi": 2}, "'codec.steps.lo' is 1.5, expected 0.001 to 1, the codec's own step"),
        ("codec.steps", {"lo": 0.5, "hi": 0.9}, "'codec.steps.hi' is 0.9, expected 1, the codec's own step, to 1000"),
        ("codec.steps", {"lo": 0.5, "hi": 1e9}, "'codec.steps.hi' is 1000000000.0, expected 1, the codec's own"),
        ("codec.steps", {"lo": 0.5, "hi": float("inf")}, "holds what JSON text cannot"),
        ("files.compressor", ..., "the role is required"),
        ("files.oracle", {}, "unknown role 'oracle'"),
        ("files.segmenter.path", "../segmenter.onnx", "relative path inside the bundle"),
        ("files.segmenter.path", "/etc/passwd", "relative path inside the bundle"),
        ("files.segmenter.path", "a/../../b.onnx", "relative path inside the bundle"),
        ("files.segmenter.path", "..\\b.onnx", "relative path inside the bundle"),
        ("files.segmenter.path", "C:b.onnx", "relative path inside the bundle"),
        ("files.segmenter.path", ".", "relative path inside the bundle"),
        ("files.segmenter.path", "gone.onnx", "the file of role 'segmenter' is missing"),
        ("files.segmenter.sha256", "0" * 63, "64 lower-case hex"),
        ("files.segmenter.bytes", 7, "expected 7"),
        ("files.segmenter.bytes", 0, "integer >= 1"),
        ("files.segmenter.macs_per_pixel", -1, "a number >= 0"),
        ("files.segmenter.macs_per_pixel", "many", "expected a number"),
        ("files.segmenter.parameters", None, "expected an integer"),
        ("classes", [], "0 entries"),
        ("classes", [{"name": f"c{i}", "color": [0, 0, 0]} for i in range(257)], "257 entries"),
        ("classes.1.name", "red", "the name 'red' twice"),
        ("classes.1.color", [0, 0], "three integers"),
        ("classes.1.color", [0, 0, 256], "three integers"),
        ("classes.1", "green", "classes[1] is str, expected an object"),
        ("scores", [1], "'scores' is [1] (list)"),
    ],
)
def test_manifest_that_lies(folder: Path, where: str, value: Any, says: str) -> None:
    edit(folder, where, value)
    with pytest.raises(ArtifactError) as caught:
        load_bundle(folder)
    assert says in str(caught.value)
    assert caught.value.exit_code == 4
    assert caught.value.hint


@pytest.mark.parametrize(
    ("coder", "tile"), [("context", [16, 1]), ("huffman-channel", [0, 0]), ("huffman-frame", [0, 0])]
)
def test_coder_and_tile_reach_the_stream(folder: Path, coder: str, tile: list[int]) -> None:
    edit(folder, "codec.coder", coder)
    edit(folder, "codec.tile", tile)
    header = load_bundle(folder).header(16, 16)
    assert (header.coder, header.tile) == (coder, tuple(tile))
    assert header.lane_symbols == (16 if coder == "context" else 4096)


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"schema": NaN}', "[" * 100_000, "\xff\xfe"])
def test_manifest_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError):
        load_bundle(folder)


def test_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="expected at most"):
        load_bundle(folder)


def test_missing_file(folder: Path) -> None:
    (folder / "rgb_segmenter.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"rgb_segmenter.*missing"):
        load_bundle(folder)


def test_cut_file(folder: Path) -> None:
    os.truncate(folder / "segmenter.onnx", 10)
    with pytest.raises(ArtifactError, match="has 10 bytes, expected"):
        load_bundle(folder)


def test_changed_file_is_found_before_it_is_used(folder: Path) -> None:
    file = folder / "segmenter.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    loaded = load_bundle(folder)  # the size still fits, and hashing waits for the first use
    assert loaded.model_path("compressor").is_file()
    with pytest.raises(ArtifactError, match=r"was changed: SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"):
        loaded.model_path("segmenter")


def test_role_that_is_not_there(tmp_path: Path) -> None:
    small = write_tiny_bundle(tmp_path / "small", ("compressor", "segmenter"))
    with pytest.raises(ArtifactError, match="has no decompressor, only compressor, segmenter"):
        small.model_path("decompressor")
    with pytest.raises(UsageError, match="unknown role 'oracle'"):
        small.model_path("oracle")


def test_names_and_folders(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "shipped_bundles", lambda: {"tiny": tiny_bundle.path})
    assert load_bundle("tiny").path == tiny_bundle.path
    with pytest.raises(UsageError, match=r"no bundle named 'tinny'; known: tiny") as usage:
        load_bundle("tinny")
    assert usage.value.exit_code == 2
    with pytest.raises(InputError) as missing:
        load_bundle(tmp_path / "not" / "there")
    assert missing.value.exit_code == 3
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load_bundle(tmp_path)
    with pytest.raises(ArtifactError, match="is a file, expected"):
        load_bundle(tiny_bundle.path / "manifest.json")
    # A folder of the same name does not hide the shipped bundle, and can still be meant.
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(Path("tiny"), name="mine")
    assert load_bundle("tiny").name == "tiny"
    assert load_bundle("./tiny").name == load_bundle(Path("tiny")).name == "mine"


def test_every_shipped_bundle_loads() -> None:
    for name, path in bundle_module.shipped_bundles().items():
        shipped = load_bundle(name)
        assert shipped.path == path
        for role in shipped.roles:
            shipped.model_path(role)


def test_write_keeps_other_files_and_needs_leave_to_overwrite(folder: Path) -> None:
    (folder / "CARD.md").write_text("what it is")
    with pytest.raises(UsageError, match="already holds a bundle"):
        write_tiny_bundle(folder)
    assert write_tiny_bundle(folder, name="second", overwrite=True).name == "second"
    assert (folder / "CARD.md").read_text() == "what it is"
    assert not list(folder.glob("*.partial"))


def test_write_from_the_files_already_in_the_folder(folder: Path) -> None:
    old = load_bundle(folder)
    models = {role: (old.model_path(role), 2.0, 1) for role in old.roles}
    new = write_bundle(folder, "again", old.codec, models, old.classes, overwrite=True)
    assert [new.model_path(role).name for role in new.roles] == [f"{role}.onnx" for role in old.roles]


def test_write_refuses_what_would_not_load(tiny_bundle: Bundle, tmp_path: Path) -> None:
    models = {"segmenter": (tiny_bundle.model_path("segmenter"), 1.0, 0)}
    with pytest.raises(ArtifactError, match=r"files\.compressor"):
        write_bundle(tmp_path / "new", "half", tiny_bundle.codec, models, CLASSES)
    assert not (tmp_path / "new").exists()


def test_write_to_a_full_disk(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module.shutil, "copyfile", full)
    models = {role: (tiny_bundle.model_path(role), 1.0, 0) for role in tiny_bundle.roles}
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(tmp_path / "new", "new", tiny_bundle.codec, models, CLASSES)
    assert not (tmp_path / "new" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("size", "latent"), [((1, 1), (3, 1, 1)), ((8, 8), (3, 1, 1)), ((9, 7), (3, 2, 1)), ((1021, 509), (3, 128, 64))]
)
def test_header_of_any_size(tiny_bundle: Bundle, size: tuple[int, int], latent: tuple[int, int, int]) -> None:
    header = tiny_bundle.header(*size, (30000, 1001))
    assert header.latent_shape == latent
    assert (header.source_size, header.frame_rate) == (size, (30000, 1001))
    tiny_bundle.check_stream(header)
    assert bundle_module.frame_size(header, 8) == size


def test_streams_that_do_not_fit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    header = tiny_bundle.header(16, 16)
    other = write_tiny_bundle(tmp_path / "other", codec_seed="other")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"codec_id": bytes(32)}, "names no codec"),
        ({"codec_id": other.codec.id}, "was written by codec"),
        ({"bits": 7}, "has 7 bits a symbol, expected 8"),
        ({"latent_shape": (4, 2, 2)}, "4 latent channels, expected 3"),
        ({"latent_shape": (3, 2, 3)}, "latent is 3x2x3, expected 3x2x2"),
    ]
    for change, says in changes:
        wrong = copy.copy(header)
        for name, value in change.items():
            object.__setattr__(wrong, name, value)
        with pytest.raises(ArtifactError, match=says) as caught:
            tiny_bundle.check_stream(wrong)
        assert caught.value.exit_code == 4


def test_unknown_source_size_means_the_padded_one(tiny_bundle: Bundle) -> None:
    header = tiny_bundle.header(16, 24)
    object.__setattr__(header, "source_size", (0, 0))
    tiny_bundle.check_stream(header)
    assert bundle_module.frame_size(header, 8) == (16, 24)
    assert np.prod(header.latent_shape) == 18


# --- variants ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Some other form of a model; what is in it is nobody's business here."""
    file = tmp_path / "made.onnx"
    file.write_bytes(b"int8" * 100)
    return file


def test_a_bundle_without_variants_has_fp32_alone(tiny_bundle: Bundle) -> None:
    assert "variants" not in tiny_bundle.manifest
    for role in tiny_bundle.roles:
        assert tiny_bundle.variants(role) == ("fp32",)
        assert tiny_bundle.model_path(role, "fp32") == tiny_bundle.model_path(role)


def test_add_variant_and_find_it_again(folder: Path, other: Path) -> None:
    old = load_bundle(folder)
    new = add_variant(old, "segmenter", "int8", other, {"loss": 0.5, "of": ["a"]})
    assert new.variants("segmenter") == ("fp32", "int8")
    assert new.variants("rgb_segmenter") == new.variants("compressor") == ("fp32",)
    file = new.model_path("segmenter", "int8")
    assert (file.name, file.read_bytes()) == ("segmenter-int8.onnx", other.read_bytes())
    assert new.model_path("segmenter").read_bytes() == old.model_path("segmenter").read_bytes()
    assert new.manifest["variants"]["segmenter"]["int8"]["report"] == {"loss": 0.5, "of": ["a"]}
    # One bundle in memory, two variants added from it: the second does not take the first away.
    both = add_variant(old, "rgb_segmenter", "torch", other.rename(other.with_suffix(".pt2")), {})
    assert (both.variants("segmenter"), both.variants("rgb_segmenter")) == (("fp32", "int8"), ("fp32", "torch"))
    assert both.model_path("rgb_segmenter", "torch").name == "rgb_segmenter-torch.pt2"
    again = load_bundle(folder)
    assert again.manifest == both.manifest
    unchanged = {key: value for key, value in again.manifest.items() if key != "variants"}
    assert unchanged == old.manifest
    assert not list(folder.glob("*.partial"))


def test_a_variant_that_is_not_there_names_the_command(folder: Path) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(ArtifactError, match="bundle 'tiny' has no int8 segmenter, only fp32") as caught:
        bundle.model_path("segmenter", "int8")
    assert caught.value.exit_code == 4
    assert caught.value.hint == (f"latentseg build {folder} --target onnxruntime --precision int8 --frames FOLDER")
    with pytest.raises(ArtifactError) as caught:
        bundle.model_path("segmenter", "torch")
    assert "latentseg export" in caught.value.hint
    with pytest.raises(ArtifactError) as caught:
        bundle.model_path("compressor", "int8")
    assert "must be the ones it was trained with" in caught.value.hint
    with pytest.raises(UsageError, match="unknown variant 'int4', expected one of fp32, int8, torch"):
        bundle.model_path("segmenter", "int4")


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("variants", [], "'variants' is [] (list), expected an object"),
        ("variants.segmenter", None, "'variants.segmenter' is None"),
        ("variants.compressor", {"int8": {}}, "compressor has the unknown variant 'int8', known: torch"),
        ("variants.oracle", {}, "'variants.oracle' is there, expected only roles that 'files' has (compressor, "),
        ("variants.segmenter.int4", {}, "segmenter has the unknown variant 'int4', known: int8, torch"),
        ("variants.segmenter.int8", "x", "'variants.segmenter.int8' is 'x'"),
        ("variants.segmenter.int8.path", "../s.onnx", "relative path inside the bundle"),
        ("variants.segmenter.int8.path", "segmenter.onnx", "a file of its own (segmenter has this one)"),
        ("variants.segmenter.int8.path", "./segmenter.onnx", "a file of its own (segmenter has this one)"),
        ("variants.segmenter.int8.path", "./manifest.json", "a model's file, not the manifest"),
        ("variants.segmenter.int8.path", "gone.onnx", "the file of role 'segmenter, variant int8' is missing"),
        ("variants.segmenter.int8.sha256", "0", "64 lower-case hex"),
        ("variants.segmenter.int8.bytes", 7, "segmenter-int8.onnx has 400 bytes, expected 7"),
        ("variants.segmenter.int8.bytes", True, "(bool), expected an integer"),
        ("variants.segmenter.int8.report", ..., "'variants.segmenter.int8.report' is missing"),
        ("variants.segmenter.int8.report", "good", "expected an object"),
    ],
)
def test_variants_that_lie(folder: Path, other: Path, where: str, value: Any, says: str) -> None:
    add_variant(load_bundle(folder), "segmenter", "int8", other, {})
    edit(folder, where, value)
    with pytest.raises(ArtifactError) as caught:
        load_bundle(folder)
    assert says in str(caught.value)
    assert caught.value.hint


def test_a_changed_variant_is_found_before_it_is_used(folder: Path, other: Path) -> None:
    add_variant(load_bundle(folder), "segmenter", "int8", other, {})
    (folder / "segmenter-int8.onnx").write_bytes(b"int9" * 100)
    bundle = load_bundle(folder)
    assert bundle.model_path("segmenter").is_file()
    with pytest.raises(ArtifactError, match=r"segmenter-int8.onnx was changed: SHA-256"):
        bundle.model_path("segmenter", "int8")


def test_variants_that_cannot_be_added(folder: Path, other: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    before = (folder / "manifest.json").read_bytes()
    for role, variant in (("compressor", "int8"), ("segmenter", "int4"), ("segmenter", "fp32"), ("oracle", "int8")):
        with pytest.raises(UsageError, match="no bundle has the variant"):
            add_variant(bundle, role, variant, other, {})
    with pytest.raises(ArtifactError, match="what JSON text cannot"):
        add_variant(bundle, "segmenter", "int8", other, {"loss": float("nan")})
    small = write_tiny_bundle(tmp_path / "small", ("compressor", "segmenter"))
    with pytest.raises(ArtifactError, match="has no rgb_segmenter"):
        add_variant(small, "rgb_segmenter", "int8", other, {})
    assert (folder / "manifest.json").read_bytes() == before
    assert not (folder / "segmenter-int8.onnx").exists()


@pytest.mark.parametrize("at", range(3))
def test_a_variant_is_replaced_and_every_step_loads(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The disk fills up at each of the steps in turn; what is there afterwards is whole, old, new or without."""
    add_variant(load_bundle(folder), "segmenter", "int8", other, {"which": "old"})
    newer = tmp_path / "newer.onnx"
    newer.write_bytes(b"more" * 200)
    steps = []

    def counted(original: Any) -> Any:
        def step(*arguments: Any) -> None:
            if len(steps) == at:
                raise OSError(28, "No space left on device")
            steps.append(original)
            original(*arguments)

        return step

    with monkeypatch.context() as patch:
        for name in ("_write_manifest", "_replace"):
            patch.setattr(bundle_module, name, counted(getattr(bundle_module, name)))
        with pytest.raises(OutputError, match="No space left"):
            add_variant(load_bundle(folder), "segmenter", "int8", newer, {"which": "new"})
    found = load_bundle(folder)
    assert found.variants("segmenter") == (("fp32", "int8") if at == 0 else ("fp32",))
    if at == 0:
        assert found.model_path("segmenter", "int8").read_bytes() == other.read_bytes()
    new = add_variant(found, "segmenter", "int8", newer, {"which": "new"})
    assert new.model_path("segmenter", "int8").read_bytes() == newer.read_bytes()
    assert new.manifest["variants"]["segmenter"]["int8"]["report"] == {"which": "new"}


def test_a_bundle_written_anew_loses_its_variants(folder: Path, other: Path) -> None:
    add_variant(load_bundle(folder), "segmenter", "int8", other, {})
    (folder / "segmenter-notes.txt").write_text("mine")
    again = write_tiny_bundle(folder, name="second", overwrite=True)
    assert again.variants("segmenter") == ("fp32",)
    assert not (folder / "segmenter-int8.onnx").exists()
    assert (folder / "segmenter-notes.txt").exists()
