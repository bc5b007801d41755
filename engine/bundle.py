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
from ..bitstream import Scaling, StreamHeader
from ..errors import ArtifactError, InputError, OutputError, UsageError
from .manifest import (
    CLASSIFYING_ROLES,
    MANIFEST_NAME,
    ROLES,
    SCHEMA,
    VARIANTS,
    ClassInfo,
    CodecSpec,
    Manifest,
    parse_manifest,
    read_manifest,
    variants_of,
)

__all__ = ["Bundle", "ClassInfo", "CodecSpec", "add_variant", "load_bundle", "shipped_bundles", "write_bundle"]

UNNAMED_CODEC = bytes(32)
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

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of one frame: h = ceil(height / stride), w = ceil(width / stride)."""
        s = self.codec.stride
        return self.codec.channels, -(-height // s), -(-width // s)

    def header(self, height: int, width: int, frame_rate: tuple[int, int] = (0, 1)) -> StreamHeader:
        """The header of a stream of frames of height x width pixels. `frame_rate`: (num, den), (0, 1) unknown."""
        if height < 1 or width < 1:
            raise UsageError(f"frames are {height}x{width}, expected at least 1x1")
        return StreamHeader(
            codec_id=self.codec.id,
            latent_shape=self.latent_shape(height, width),
            bits=self.codec.bits,
            scaling=self.codec.scaling,
            source_size=(height, width),
            frame_rate=frame_rate,
            coder=self.codec.coder,
            tile=self.codec.tile,
        )

    def check_stream(self, header: StreamHeader) -> None:
        """Raise ArtifactError unless a stream with this header is this bundle's codec's own."""
        codec, found = self.codec, bytes(header.codec_id)
        if found != codec.id:
            what = "names no codec" if found == UNNAMED_CODEC else f"was written by codec {found.hex()[:16]}"
            raise ArtifactError(
                f"the stream {what}, expected {codec.id.hex()[:16]} ('{codec.name}', of bundle '{self.name}')",
                hint="use the bundle that encoded the stream, or encode the source again with this one",
            )
        if header.bits != codec.bits:
            raise ArtifactError(f"the stream has {header.bits} bits a symbol, expected {codec.bits} ('{codec.name}')")
        channels, h, w = header.latent_shape
        if channels != codec.channels:
            raise ArtifactError(f"the stream has {channels} latent channels, expected {codec.channels}")
        if header.source_size != (0, 0):
            expected = self.latent_shape(*header.source_size)
            if (channels, h, w) != expected:
                height, width = header.source_size
                raise ArtifactError(
                    f"the stream's latent is {channels}x{h}x{w}, expected {expected[0]}x{expected[1]}x{expected[2]} "
                    f"for frames of {height}x{width} at stride {codec.stride}"
                )
        scaling = header.scaling
        if "codebook" in (scaling.mode, codec.scaling.mode) and scaling != codec.scaling:
            raise ArtifactError(
                f"the stream's scaling is {_scaling_text(scaling)}, expected {_scaling_text(codec.scaling)} "
                f"('{codec.name}')",
                hint="use the bundle that encoded the stream, or encode the source again with this one",
            )


def _scaling_text(scaling: Scaling) -> str:
    if scaling.mode != "codebook":
        return scaling.mode
    return f"a codebook of {len(scaling.centres)} centres, " + ", ".join(f"{c:.6g}" for c in scaling.centres[:8])


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


def load_bundle(spec: str | os.PathLike[str]) -> Bundle:
    """Load a bundle by the name of a shipped one ("camvid-compact"), or from a folder.

    A bare string means the shipped bundle of that name where there is one; "./name", or a Path, means a folder.

    Raises
    ------
    UsageError: a bare name that is neither shipped nor a folder (the message lists the known names).
    InputError: no such folder. ArtifactError: the manifest or the files do not hold what they say.
    """
    text = os.fspath(spec)
    shipped = shipped_bundles()
    path = shipped.get(text, Path(text)) if isinstance(spec, str) else Path(spec)
    if not path.is_dir():
        if path.is_file():
            raise ArtifactError(f"'{text}' is a file, expected a bundle's folder", hint="give the folder that holds it")
        if Path(text).name == text:
            raise UsageError(
                f"no bundle named '{text}'; shipped: {', '.join(shipped) or 'none'}",
                hint="give one of these names, or the path of a bundle's folder",
            )
        raise InputError(f"no such folder: {text}", hint=f"shipped bundles: {', '.join(shipped) or 'none'}")
    return Bundle(path, read_manifest(path))


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
        },
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
