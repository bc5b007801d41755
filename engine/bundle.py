"""Bundles: a folder with a manifest beside its ONNX files, read and written here and nowhere else.

Loading checks the manifest, then that every file is there with the announced size; the content hash of a file is
checked once, when its path is first asked for (`Bundle.model_path`), so that a role that is never used costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..bitstream import StreamHeader
from ..errors import ArtifactError, InputError, OutputError, UsageError
from .codec import ONE_STEP, CodecSpec
from .manifest import (
    CLASSIFYING_ROLES,
    MANIFEST_NAME,
    ROLES,
    SCHEMA,
    VARIANTS,
    ClassInfo,
    Manifest,
    parse_manifest,
    read_manifest,
    variants_of,
)

__all__ = [
    "Bundle",
    "ClassInfo",
    "CodecSpec",
    "add_variant",
    "load_bundle",
    "named_bundles",
    "shipped_bundles",
    "write_bundle",
]

BUNDLES_VARIABLE = "LATENTSEG_BUNDLES"
FP32 = "fp32"  # the variant that every role has: its ONNX file as it was exported
WHY_FP32 = "only segmenters have other precisions; a codec's symbols must be the ones it was trained with"
_HOW_TO_BUILD = {
    "int8": "latentseg build {bundle} --target onnxruntime --precision int8 --frames FOLDER",
    "torch": "export it again with its programs: latentseg export --codec RUN --{role} RUN --programs -o {bundle}",
}


class Bundle:
    """A loaded bundle: checked facts, and the way to its model files.

    Attributes
    ----------
    path: the bundle's folder. name: its name.
    manifest: the whole manifest as a dict (free-form parts included).
    codec: CodecSpec. classes: list[ClassInfo], in label order. roles: the roles it has a model for.
    classifies: whether it has classifiers, and so no segmenters.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.name = manifest.name
        self.manifest: dict[str, Any] = manifest.raw
        self.codec = manifest.codec
        self.classes = list(manifest.classes)
        self.roles = tuple(role for role in ROLES if role in manifest.files)
        self.classifies = not CLASSIFYING_ROLES.isdisjoint(self.roles)
        self._files = manifest.files
        self._variants = manifest.variants
        self._hashed: set[tuple[str, str]] = set()
        for role, file in self._files.items():
            self._check_size(role, self.path / file.path, file.bytes)
        for role, variants in self._variants.items():
            for name, variant in variants.items():
                self._check_size(f"{role}, variant {name}", self.path / variant.path, variant.bytes)

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, roles={'+'.join(self.roles)}, path={str(self.path)!r})"

    def _check_size(self, role: str, file: Path, expected: int) -> None:
        if not file.is_file():
            raise ArtifactError(
                f"bundle '{self.name}': the file of role '{role}' is missing: {file}",
                hint="copy the whole folder again, or export the bundle again",
            )
        found = file.stat().st_size
        if found != expected:
            raise ArtifactError(
                f"bundle '{self.name}': {file.name} has {found} bytes, expected {expected}",
                hint="the file was changed or cut; copy the whole folder again",
            )

    def variants(self, role: str) -> tuple[str, ...]:
        """What `model_path` can be asked for: "fp32", and the variants that this bundle has of `role`."""
        return (FP32, *(name for name in VARIANTS if name in self._variants.get(role, {})))

    def model_path(self, role: str, variant: str = FP32) -> Path:
        """The model file of `role`, its SHA-256 checked the first time.

        variant: "fp32" for the ONNX file as exported, or one of VARIANTS.

        Raises
        ------
        UsageError: no such role or variant exists. ArtifactError: this bundle lacks it, or its file was changed.
        """
        if role not in ROLES:
            raise UsageError(f"unknown role '{role}', expected one of {', '.join(ROLES)}")
        if variant not in (FP32, *VARIANTS):
            raise UsageError(f"unknown variant '{variant}', expected one of {', '.join((FP32, *VARIANTS))}")
        if role not in self._files:
            raise ArtifactError(
                f"bundle '{self.name}' has no {role}, only {', '.join(self.roles)}",
                hint=f"export it again with a {role}, or leave out what needs one",
            )
        if variant not in self.variants(role):
            raise self._lacks(role, variant)
        file = self._files[role] if variant == FP32 else self._variants[role][variant]
        path = self.path / file.path
        if (role, variant) not in self._hashed:
            self._check_size(role, path, file.bytes)
            found = _sha256(path)
            if found != file.sha256:
                raise ArtifactError(
                    f"bundle '{self.name}': {path.name} was changed: SHA-256 is {found}, expected {file.sha256}",
                    hint="copy the whole folder again, or export the bundle again",
                )
            self._hashed.add((role, variant))
        return path

    def _lacks(self, role: str, variant: str) -> ArtifactError:
        found = f"bundle '{self.name}' has no {variant} {role}, only {', '.join(self.variants(role))}"
        if variant not in variants_of(role):
            return ArtifactError(found, hint=f"--precision fp32: {WHY_FP32}")
        asked = "classifier" if self.classifies else "segmenter"
        how = _HOW_TO_BUILD[variant].format(bundle=shlex.quote(str(self.path)), role=asked)
        return ArtifactError(found, hint=how)

    def macs(self, role: str, height: int, width: int) -> float:
        """Convolution multiply-accumulates of `role`'s model on one frame of height x width source pixels."""
        self.model_path(role)
        return self._files[role].macs_per_pixel * height * width

    def parameters(self, role: str) -> int:
        """Parameters of `role`'s model."""
        self.model_path(role)
        return self._files[role].parameters

    @property
    def model_bytes(self) -> int:
        """Bytes of all model files, variants included."""
        variants = [variant for by_name in self._variants.values() for variant in by_name.values()]
        return sum(file.bytes for file in self._files.values()) + sum(variant.bytes for variant in variants)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of one frame: h = ceil(height / stride), w = ceil(width / stride)."""
        return self.codec.latent_shape(height, width)

    def header(
        self,
        height: int,
        width: int,
        frame_rate: tuple[int, int] = (0, 1),
        step: float = 1.0,
        key_interval: int = 1,
    ) -> StreamHeader:
        """The header of a stream of frames of height x width pixels.

        frame_rate: (num, den), (0, 1) unknown. step: of the quantisation; see `CodecSpec.scaling_at`. key_interval: see
        `CodecSpec.coder_at`.
        Raises UsageError for frames without pixels and a step or key interval that the codec cannot take.
        """
        if height < 1 or width < 1:
            raise UsageError(f"frames are {height}x{width}, expected at least 1x1")
        return StreamHeader(
            codec_id=self.codec.id,
            latent_shape=self.latent_shape(height, width),
            bits=self.codec.bits,
            scaling=self.codec.scaling_at(step),
            source_size=(height, width),
            frame_rate=frame_rate,
            coder=self.codec.coder_at(key_interval),
            tile=self.codec.tile,
        )

    def check_stream(self, header: StreamHeader) -> None:
        """Raise ArtifactError unless a stream with this header is this bundle's codec's own."""
        self.codec.check_stream(header, self.name)


def frame_size(header: StreamHeader, stride: int) -> tuple[int, int]:
    """(H, W) that labels and frames of a stream are cropped to: the source's, or the padded size where unknown."""
    if header.source_size != (0, 0):
        return header.source_size
    _, h, w = header.latent_shape
    return h * stride, w * stride


def shipped_bundles() -> dict[str, Path]:
    """Name -> folder of every bundle that comes with the package."""
    from .. import bundles

    root = Path(next(iter(bundles.__path__)))
    return {p.parent.name: p.parent for p in sorted(root.glob(f"*/{MANIFEST_NAME}"))}


def named_bundles() -> dict[str, tuple[Path, ...]]:
    """Name -> folders of every bundle that has a name: the shipped ones, and those of `LATENTSEG_BUNDLES`.

    The environment variable holds folders, separated as in PATH; each folder in one of them that has a manifest is a
    bundle of that folder's name. A name that is there twice has two folders, and `load_bundle` refuses it.
    Raises UsageError where the variable names what is no folder.
    """
    found: dict[str, tuple[Path, ...]] = {name: (path,) for name, path in shipped_bundles().items()}
    for text in filter(None, os.environ.get(BUNDLES_VARIABLE, "").split(os.pathsep)):
        root = Path(text)
        if not root.is_dir():
            raise UsageError(
                f"{BUNDLES_VARIABLE} names '{text}', which is no folder",
                hint=f"set it to folders that hold bundles, separated by '{os.pathsep}', or unset it",
            )
        if (root / MANIFEST_NAME).is_file():
            raise UsageError(
                f"{BUNDLES_VARIABLE} names the bundle '{text}' itself", hint="name the folder that the bundle lies in"
            )
        for path in (manifest.parent for manifest in sorted(root.glob(f"*/{MANIFEST_NAME}"))):
            others = found.get(path.name, ())
            if not any(path.samefile(other) for other in others):
                found[path.name] = (*others, path)
    return found


def load_bundle(spec: str | os.PathLike[str]) -> Bundle:
    """Load a bundle by its name ("camvid-compact"; see `named_bundles`), or from a folder.

    A bare string means the bundle of that name where there is one; "./name", or a Path, means a folder.

    Raises
    ------
    UsageError: a bare name that is neither a bundle's nor a folder (the message lists the known names), or the name of
    two bundles. InputError: no such folder. ArtifactError: the manifest or the files do not hold what they say.
    """
    text, path = os.fspath(spec), Path(spec)
    bare = path.name == text
    named = named_bundles() if isinstance(spec, str) and bare else {}
    if text in named:
        path = _only(text, named[text])
    if not path.is_dir():
        if path.is_file():
            raise ArtifactError(f"'{text}' is a file, expected a bundle's folder", hint="give the folder that holds it")
        known = ", ".join(named if named else shipped_bundles()) or "none"
        if bare:
            raise UsageError(
                f"no bundle named '{text}'; known: {known}",
                hint=f"give one of these names, or a bundle's folder; {BUNDLES_VARIABLE} adds the bundles in a folder",
            )
        raise InputError(f"no such folder: {text}", hint=f"shipped bundles: {known}")
    return Bundle(path, read_manifest(path))


def _only(name: str, places: Sequence[Path]) -> Path:
    if len(places) > 1:
        raise UsageError(
            f"{len(places)} bundles are named '{name}': {', '.join(map(str, places))}",
            hint="give the folder of the one that you mean, or rename the other's",
        )
    return places[0]


def write_bundle(
    path: str | os.PathLike[str],
    name: str,
    codec: CodecSpec,
    models: Mapping[str, tuple[Path, float, int]],
    classes: Sequence[ClassInfo],
    verification: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    description: str = "",
    *,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle's folder and load it again, so that what is returned has passed every check.

    `models`: role -> (ONNX file, conv MACs per source pixel, parameters); the files are copied in as `<role>.onnx`.
    The manifest is written last and replaced in one step; variants of the models that it replaces are removed, other
    files in the folder (a model card) are left alone.

    Raises
    ------
    UsageError: the folder already holds a bundle and `overwrite` is false.
    ArtifactError: the facts given do not make a valid manifest. OutputError: writing failed.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"'{folder}' is a file, expected a folder to write the bundle to")
    if (folder / MANIFEST_NAME).exists() and not overwrite:
        raise UsageError(f"'{folder}' already holds a bundle", hint="choose another folder, or overwrite it")
    scaling: dict[str, Any] = {"mode": codec.scaling.mode}
    if codec.scaling.mode == "fixed":
        scaling |= {"lo": codec.scaling.lo, "hi": codec.scaling.hi}
    if codec.scaling.mode == "codebook":
        scaling |= {"centres": list(codec.scaling.centres)}
    raw: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "created_by": f"latentseg {__version__}",
        "description": description,
        "codec": {
            "name": codec.name,
            "id": codec.id.hex(),
            "channels": codec.channels,
            "stride": codec.stride,
            "bits": codec.bits,
            "scaling": scaling,
            "coder": codec.coder,
            "tile": list(codec.tile),
        }
        | ({} if codec.steps == ONE_STEP else {"steps": {"lo": codec.steps[0], "hi": codec.steps[1]}}),
        "files": {
            role: {
                "path": f"{role}.onnx",
                "sha256": _sha256(file),
                "bytes": file.stat().st_size,
                "macs_per_pixel": macs,
                "parameters": parameters,
            }
            for role, (file, macs, parameters) in models.items()
        },
        "classes": [{"name": c.name} | ({} if c.color is None else {"color": list(c.color)}) for c in classes],
        "verification": dict(verification or {}),
        "scores": dict(scores or {}),
        "training": dict(training or {}),
    }
    parse_manifest(raw)  # nothing is written unless it would load
    stale = _variant_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for role, (file, _, _) in models.items():
            _replace(folder / f"{role}.onnx", file)
        _write_manifest(folder, raw)
        for file in set(stale) - {folder / f"{role}.onnx" for role in models}:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write bundle '{folder}': {error.strerror or error}") from error
    return Bundle(folder, read_manifest(folder))


def add_variant(bundle: Bundle, role: str, variant: str, file: Path, report: Mapping[str, Any]) -> Bundle:
    """Copy `file` into the bundle's folder as `role`'s `variant`, in place of an older one, and load the bundle again.

    report: JSON values: how it was made, and what it loses. The bundle can be loaded after every step: an older
    variant leaves the manifest before its file is replaced, and the new one enters it when its file is whole.

    Raises
    ------
    UsageError: no such role or variant. ArtifactError: the bundle lacks the role, or the report is no JSON.
    OutputError: writing failed.
    """
    if role not in ROLES or variant not in variants_of(role):
        raise UsageError(
            f"no bundle has the variant '{variant}' of role '{role}'",
            hint="; ".join(f"{known}: {', '.join(variants_of(known))}" for known in ROLES),
        )
    bundle.model_path(role)
    folder = bundle.path
    # Read again: another variant may have been added since `bundle` was loaded.
    raw = dict(read_manifest(folder).raw)
    variants = {key: dict(value) for key, value in raw.get("variants", {}).items()}
    older = variants.setdefault(role, {}).pop(variant, None)
    entry = {
        "path": f"{role}-{variant}{file.suffix}",
        "sha256": _sha256(file),
        "bytes": file.stat().st_size,
        "report": dict(report),
    }
    new = {**raw, "variants": {**variants, role: {**variants[role], variant: entry}}}
    parse_manifest(new)  # nothing is written unless it would load
    try:
        if older is not None:
            _write_manifest(folder, {**raw, "variants": variants})
        _replace(folder / f"{role}-{variant}{file.suffix}", file)
        _write_manifest(folder, new)
        if older is not None and older["path"] != entry["path"]:
            (folder / older["path"]).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to bundle '{folder}': {error.strerror or error}") from error
    return Bundle(folder, read_manifest(folder))


def _variant_files(folder: Path) -> list[Path]:
    """The files of the variants of a bundle that is about to be replaced; none where its manifest cannot be read."""
    try:
        old = read_manifest(folder)
    except (ArtifactError, InputError):
        return []
    return [folder / file.path for variants in old.variants.values() for file in variants.values()]


def _write_manifest(folder: Path, raw: Mapping[str, Any]) -> None:
    partial = folder / (MANIFEST_NAME + ".partial")
    partial.write_text(json.dumps(raw, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST_NAME)


def _replace(target: Path, source: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    partial = target.with_name(target.name + ".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
