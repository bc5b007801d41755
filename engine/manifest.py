"""The manifest of a bundle: what `manifest.json` may say, checked key by key before any other file is touched.

Every lie has its own message: which key, what was found, what was expected. A manifest that passes is a set of plain
facts (`Manifest`); whether the files beside it agree with those facts is `bundle.py`'s work.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..bitstream import Scaling
from ..bitstream.header import (
    CODERS,
    MAX_LANE_SYMBOLS,
    MIN_LANE_SYMBOLS,
    SCALING_MODES,
    codebook_bits,
    is_tile,
)
from ..errors import ArtifactError, InputError
from .codec import MAX_STEP, ONE_STEP, CodecSpec

SCHEMA = 1
LONE_CODERS = tuple(coder for coder in CODERS if coder != "inter")  # a stream is of "inter", no codec
MANIFEST_NAME = "manifest.json"

# Role -> what its model does. The ONNX interface of each is in `roles.py`.
ROLES: dict[str, str] = {
    "compressor": "frames -> latent",
    "decompressor": "latent -> frames",
    "segmenter": "latent -> labels",
    "rgb_segmenter": "frames -> labels",
    "classifier": "latent -> class probabilities",
    "rgb_classifier": "frames -> class probabilities",
}
REQUIRED_ROLES = ("compressor",)  # a codec alone can encode; what needs another role says so
# A bundle has roles of one of these sets, since one list of classes serves them; with none, it needs no classes.
LABELLING_ROLES = {"segmenter", "rgb_segmenter"}
CLASSIFYING_ROLES = {"classifier", "rgb_classifier"}
# Forms of a model beside its fp32 ONNX file. A codec's is fp32, too: its symbols must be the ones it was trained with.
VARIANTS = ("int8", "torch")
FP32_VARIANTS = ("torch",)

_MAX_MANIFEST_BYTES = 16 << 20  # the names of the most classes take 3 MiB
_MAX_CHANNELS = 4096
_MAX_STRIDE = 256
_MAX_CLASSES = 256  # labels are uint8
_MAX_CLASSIFIED = 1 << 16  # a classifier's
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REEXPORT = "export the bundle again: latentseg export"


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, and its colour (R, G, B), each 0 to 255. Its label is its place in the list.

    Only a classifier's class may have no colour: nothing is drawn in it.
    """

    name: str
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ModelFile:
    """One model file as the manifest describes it; `path` is relative to the bundle, with forward slashes."""

    path: str
    sha256: str
    bytes: int
    macs_per_pixel: float
    parameters: int


@dataclass(frozen=True)
class VariantFile:
    """Another form of a role's model; `report` is free: how it was made, and what it loses against fp32."""

    path: str
    sha256: str
    bytes: int
    report: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. `variants`: role, then name. `raw` is the whole JSON object, with the free-form parts."""

    name: str
    codec: CodecSpec
    files: dict[str, ModelFile]
    classes: tuple[ClassInfo, ...]
    variants: dict[str, dict[str, VariantFile]]
    raw: dict[str, Any]


def variants_of(role: str) -> tuple[str, ...]:
    """The variants that a role's model can have."""
    return VARIANTS if role in LABELLING_ROLES else FP32_VARIANTS


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`.

    Raises
    ------
    ArtifactError: no manifest, not JSON, newer schema, or any key missing, mistyped or out of range.
    InputError: the file is there but cannot be read.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtifactError(
            f"'{folder}' is not a bundle: it has no {MANIFEST_NAME}", hint="give the folder that latentseg export wrote"
        )
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ArtifactError(
                f"{path}: {path.stat().st_size} bytes, expected at most {_MAX_MANIFEST_BYTES}", hint=_REEXPORT
            )
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}", hint=_REEXPORT) from error
    return parse_manifest(raw, str(path))


def parse_manifest(raw: object, where: str = MANIFEST_NAME) -> Manifest:
    """Check a decoded manifest; `where` is named in every error. Raises ArtifactError."""
    top = _Section(raw, where, "")
    try:
        # NaN and text that no output could carry (lone surrogates) pass json.loads, and would fail where shown.
        json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} holds what JSON text cannot: {error}", hint=_REEXPORT) from error
    schema = top.integer("schema", 1, None)
    if schema > SCHEMA:
        raise ArtifactError(
            f"{where}: schema {schema} is newer than this program knows, expected at most {SCHEMA}",
            hint="pip install --upgrade latentseg",
        )
    codec = _parse_codec(top.section("codec"))
    files_section = top.section("files")
    files: dict[str, ModelFile] = {}
    for role in files_section.value:
        if role not in ROLES:
            raise ArtifactError(f"{where}: unknown role '{role}', expected one of {', '.join(ROLES)}", hint=_REEXPORT)
        files[role] = _parse_file(files_section.section(role))
    for role in REQUIRED_ROLES:
        if role not in files:
            raise files_section.error(role, "nothing", "a model file (the role is required)")
    labelling, classifying = (sorted(roles & files.keys()) for roles in (LABELLING_ROLES, CLASSIFYING_ROLES))
    if labelling and classifying:
        raise ArtifactError(
            f"{where}: {', '.join(labelling)} beside {', '.join(classifying)}, expected segmenters or classifiers",
            hint="export two bundles of the same codec",
        )
    classes = _parse_classes(top, least=1 if labelling or classifying else 0, classifying=bool(classifying))
    for free in ("verification", "scores", "training"):
        if free in top.value:
            top.section(free)
    return Manifest(
        name=top.string("name"),
        codec=codec,
        files=files,
        classes=classes,
        variants=_parse_variants(top, files) if "variants" in top.value else {},
        raw=dict(top.value),
    )


def _parse_codec(section: _Section) -> CodecSpec:
    codec_id = section.string("id")
    if not _SHA256.fullmatch(codec_id):
        raise section.error("id", repr(codec_id), "64 lower-case hex digits (SHA-256)")
    coder = section.choice("coder", LONE_CODERS)
    bits = section.integer("bits", 1, 8)
    scaling = _parse_scaling(section.section("scaling"), bits)
    return CodecSpec(
        name=section.string("name"),
        id=bytes.fromhex(codec_id),
        channels=section.integer("channels", 1, _MAX_CHANNELS),
        stride=section.integer("stride", 1, _MAX_STRIDE),
        bits=bits,
        scaling=scaling,
        coder=coder,  # type: ignore[arg-type]
        tile=_parse_tile(section, coder),
        # Optional: a reader that does not know it writes streams of step 1, which always lies within.
        steps=_parse_steps(section.section("steps"), scaling) if "steps" in section.value else ONE_STEP,
    )


def _parse_steps(section: _Section, scaling: Scaling) -> tuple[float, float]:
    lowest, highest = section.number("lo"), section.number("hi")
    if not 1 / MAX_STEP <= lowest <= 1:
        raise section.error("lo", str(lowest), f"{1 / MAX_STEP:g} to 1, the codec's own step")
    if not 1 <= highest <= MAX_STEP:
        raise section.error("hi", str(highest), f"1, the codec's own step, to {MAX_STEP}")
    if scaling.mode != "fixed":
        raise section.error("lo", f"there beside scaling '{scaling.mode}'", "no steps, but with scaling 'fixed'")
    try:
        Scaling("fixed", highest * scaling.lo, highest * scaling.hi)
    except InputError:
        raise section.error("hi", str(highest), "a multiple of the range whose 255-fold fits into float32") from None
    return lowest, highest


def _parse_tile(section: _Section, coder: str) -> tuple[int, int]:
    found = section.value.get("tile")
    sides = found if isinstance(found, list) else []
    whole = len(sides) == 2 and all(type(side) is int and side >= 0 for side in sides)
    if not whole or not (is_tile(*sides) if coder == "context" else sides == [0, 0]):
        span = f"{MIN_LANE_SYMBOLS} to {MAX_LANE_SYMBOLS}"
        raise section.error("tile", repr(found), f"[rows, columns] of {span} symbols for coder context, else [0, 0]")
    return sides[0], sides[1]


def _parse_scaling(section: _Section, bits: int) -> Scaling:
    mode = section.choice("mode", SCALING_MODES)
    if mode == "codebook":
        centres = section.get("centres", list, "a list of numbers")
        if not all(type(centre) in (int, float) for centre in centres):
            raise section.error("centres", f"{centres!r:.80}", "a list of numbers")
        try:
            scaling = Scaling("codebook", centres=tuple(centres))
        except (InputError, OverflowError) as error:  # JSON's integers have no limit
            raise section.error("centres", f"refused ({error})", "a codebook's") from None
        if codebook_bits(len(centres)) != bits:
            expected = f"{(1 << bits - 1) + 1} to {1 << bits}, as {bits} bits a symbol want"
            raise section.error("centres", f"{len(centres)} numbers", expected)
        return scaling
    if mode == "fixed":
        lo, hi = section.number("lo"), section.number("hi")
        if lo > hi:
            raise section.error("lo", str(lo), f"at most hi = {hi}")
        try:
            return Scaling("fixed", lo, hi)
        except InputError:
            raise section.error("lo", f"{lo} and 'hi' {hi}", "a range whose 255-fold fits into float32") from None
    return Scaling("tensor" if mode == "tensor" else "channel")


def _parse_file(section: _Section) -> ModelFile:
    path, sha256, size = _parse_content(section)
    macs = section.number("macs_per_pixel")
    if macs < 0:
        raise section.error("macs_per_pixel", str(macs), "a number >= 0")
    return ModelFile(path, sha256, size, macs, section.integer("parameters", 0, None))


def _parse_variants(top: _Section, files: Mapping[str, ModelFile]) -> dict[str, dict[str, VariantFile]]:
    section = top.section("variants")
    variants: dict[str, dict[str, VariantFile]] = {}
    taken = {file.path: role for role, file in files.items()}
    for role in section.value:
        if role not in files:
            raise section.error(role, "there", f"only roles that 'files' has ({', '.join(files)})")
        by_name = section.section(role)
        variants[role] = {}
        for name in by_name.value:
            if name not in variants_of(role):
                raise ArtifactError(
                    f"{top.where}: {role} has the unknown variant '{name}', known: {', '.join(variants_of(role))}",
                    hint="pip install --upgrade latentseg, or " + _REEXPORT,
                )
            entry = by_name.section(name)
            path, sha256, size = _parse_content(entry)
            if path in taken:
                raise entry.error("path", repr(path), f"a file of its own ({taken[path]} has this one)")
            taken[path] = f"{role}.{name}"
            variants[role][name] = VariantFile(path, sha256, size, dict(entry.section("report").value))
    return variants


def _parse_content(section: _Section) -> tuple[str, str, int]:
    """Path, SHA-256 and size of one file."""
    path = section.string("path")
    # Only the spelling is checked, not where links lead: the SHA-256 decides what the content may be, and caches that
    # keep files behind links stay usable. Windows spellings are refused on every system, so that a bundle is portable.
    pure, windows = PurePosixPath(path), PureWindowsPath(path)
    if pure.is_absolute() or windows.drive or windows.root or ".." in windows.parts or not pure.name or "\\" in path:
        raise section.error("path", repr(path), "a relative path inside the bundle, with forward slashes")
    if str(pure) == MANIFEST_NAME:
        raise section.error("path", repr(path), "a model's file, not the manifest")
    sha256 = section.string("sha256")
    if not _SHA256.fullmatch(sha256):
        raise section.error("sha256", repr(sha256), "64 lower-case hex digits")
    return str(pure), sha256, section.integer("bytes", 1, None)


def _parse_classes(top: _Section, least: int, classifying: bool) -> tuple[ClassInfo, ...]:
    entries = top.get("classes", list, "a list")
    most, why = (_MAX_CLASSIFIED, "") if classifying else (_MAX_CLASSES, " (labels are uint8)")
    if not least <= len(entries) <= most:
        raise top.error("classes", f"{len(entries)} entries", f"{least} to {most}{why}")
    classes: dict[str, ClassInfo] = {}
    for number, entry in enumerate(entries):
        section = _Section(entry, top.where, f"classes[{number}]")
        name = section.string("name")
        if name in classes:
            raise top.error("classes", f"the name '{name}' twice", "a different name for each class")
        drawn = not classifying or "color" in section.value
        classes[name] = ClassInfo(name, _parse_color(section) if drawn else None)
    return tuple(classes.values())


def _parse_color(section: _Section) -> tuple[int, int, int]:
    color = section.get("color", list, "a list [R, G, B]")
    if len(color) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in color):
        raise section.error("color", repr(color), "three integers from 0 to 255")
    return color[0], color[1], color[2]


class _Section:
    """One JSON object of the manifest, with getters that raise ArtifactError naming the key, found and expected."""

    def __init__(self, value: object, where: str, prefix: str) -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(value, Mapping):
            raise ArtifactError(
                f"{where}: {prefix or 'the whole file'} is {type(value).__name__}, expected an object", hint=_REEXPORT
            )
        self.value: Mapping[str, Any] = value

    def error(self, key: str, found: str, expected: str) -> ArtifactError:
        full = f"{self.prefix}.{key}" if self.prefix else key
        return ArtifactError(f"{self.where}: '{full}' is {found}, expected {expected}", hint=_REEXPORT)

    def get(self, key: str, kind: type | tuple[type, ...], expected: str) -> Any:
        if key not in self.value:
            raise self.error(key, "missing", expected)
        found = self.value[key]
        # bool is a subclass of int in Python, and never meant here.
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.error(key, f"{found!r:.80} ({type(found).__name__})", expected)
        return found

    def section(self, key: str) -> _Section:
        self.get(key, Mapping, "an object")  # type: ignore[type-abstract]
        return _Section(self.value[key], self.where, f"{self.prefix}.{key}" if self.prefix else key)

    def string(self, key: str) -> str:
        found: str = self.get(key, str, "a string")
        if not found:
            raise self.error(key, "empty", "a string")
        return found

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        found = self.string(key)
        if found not in allowed:
            raise self.error(key, repr(found), "one of " + ", ".join(allowed))
        return found

    def integer(self, key: str, low: int, high: int | None) -> int:
        expected = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
        found: int = self.get(key, int, expected)
        if found < low or (high is not None and found > high):
            raise self.error(key, str(found), expected)
        return found

    def number(self, key: str) -> float:
        try:
            found = float(self.get(key, (int, float), "a number"))
        except OverflowError:  # JSON's integers have no limit
            found = math.inf
        if not math.isfinite(found):
            raise self.error(key, str(found), "a finite number")
        return found
