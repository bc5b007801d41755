"""Engine files and their sidecars: `ROLE-PRECISION-FLAVOUR.engine`, byte-pure, beside a `.json` that says what it is.

A sidecar is compared with the bundle and the machine before TensorRT sees a byte of the engine: the library's own
answer to an engine of another version or GPU is a log line at best. It is written last, so that an engine that is half
written has none. Beside them lie caches that only save time: `.timing` (of a build with full TensorRT) and `.runtime`
(the kernels that TensorRT-RTX made when the engine ran).
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError, InputError, OutputError, UsageError
from ..backends.base import TensorSpec
from ..bundle import Bundle, shipped_bundles
from ..manifest import ROLES, _Section
from ..placement import PRECISIONS
from .api import FLAVOURS, NAMES, RTX_ARCHS, dotted, is_installed
from .engine_file import SUFFIX, EngineFile, Profile, build_command, engine_name

__all__ = [
    "ENGINE_FOLDER", "SUFFIX", "EngineFile", "Profile", "build_command", "bundle_spec", "check_bundle", "check_machine",
    "engine_bytes", "engine_name", "find_engine", "parse_sidecar", "read_engine", "sidecar_json", "write_engine",
]  # fmt: skip

SCHEMA = 1
ENGINE_FOLDER = "engines"
_SHA256 = re.compile(r"[0-9a-f]{64}")
SOURCES = ("bundle", "frames")
_DTYPES = ("uint8", "float32", "float16")
_MAX_SIDECAR_BYTES = 4 << 20


def bundle_spec(bundle: Bundle) -> str:
    """What names this bundle on a command line: a shipped one's name, or its path."""
    return bundle.name if shipped_bundles().get(bundle.name) == bundle.path else str(bundle.path)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_engine(path: Path) -> EngineFile:
    """The checked sidecar of an engine file, whose size agrees; its hash is `engine_bytes`'s work.

    Raises ArtifactError (no engine, no sidecar, newer schema, any key missing, mistyped or out of range), InputError.
    """
    hint = _again(path)
    sidecar = path.with_suffix(".json")
    if not path.is_file():
        raise ArtifactError(f"no engine at {path}", hint=hint)
    try:
        if sidecar.stat().st_size > _MAX_SIDECAR_BYTES:
            raise ArtifactError(f"{sidecar} has more than {_MAX_SIDECAR_BYTES} bytes", hint=hint)
        raw = json.loads(sidecar.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} has no sidecar {sidecar.name}, so that its build did not finish", hint=hint
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {sidecar}: {error.strerror or error}", hint="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{sidecar} is not valid JSON: {error}", hint=hint) from error
    try:
        file = parse_sidecar(raw, str(sidecar))
    except ArtifactError as error:
        error.hint = error.hint if "newer" in str(error) else hint
        raise
    if file.file_name != path.name:
        raise ArtifactError(f"{sidecar} describes {file.file_name}, expected {path.name}", hint=hint)
    if path.stat().st_size != file.bytes:
        raise ArtifactError(f"{path} has {path.stat().st_size} bytes, expected {file.bytes}", hint=hint)
    return file


def engine_bytes(path: Path, file: EngineFile) -> bytes:
    """An engine file's bytes, compared with the sidecar's hash. Raises ArtifactError, InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions") from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.engine_sha256:
        raise ArtifactError(f"{path} was changed: SHA-256 is {found}, expected {file.engine_sha256}", hint=_again(path))
    return data


def parse_sidecar(raw: object, where: str) -> EngineFile:
    """Check a decoded sidecar; `where` is named in every error. Raises ArtifactError."""
    top = _Section(raw, where, "")
    schema = top.integer("schema", 1, None)
    if schema > SCHEMA:
        raise ArtifactError(
            f"{where}: schema {schema} is newer than this program knows, expected at most {SCHEMA}",
            hint="pip install --upgrade latentseg",
        )
    source = _end(top.section("input"))
    file = EngineFile(
        bundle=top.string("bundle"),
        role=top.choice("role", tuple(ROLES)),
        precision=top.choice("precision", PRECISIONS),
        flavour=top.choice("flavour", tuple(FLAVOURS)),
        version=top.string("version"),
        model_sha256=_digest(top, "model_sha256"),
        onnx_sha256=_digest(top, "onnx_sha256"),
        source=top.choice("source", SOURCES),
        engine_sha256=_digest(top, "engine_sha256"),
        bytes=top.integer("bytes", 1, None),
        archs=_archs(top),
        profile=_profile(top, "profile", len(source.shape)),
        frames=_profile(top, "frames", 3),
        input=source,
        output=_end(top.section("output")),
        network={key: top.section("network").integer(key, 0, None) for key in top.section("network").value},
        verification=dict(top.section("verification").value),
        created_by=top.string("created_by"),
    )
    for key in ("minimum", "optimum", "maximum"):
        shape = getattr(file.profile, key)
        if any(want is not None and want != have for want, have in zip(source.shape, shape, strict=True)):
            raise top.section("profile").error(key, "x".join(map(str, shape)), f"a shape that {source} allows")
    return file


def _digest(section: _Section, key: str) -> str:
    found = section.string(key)
    if not _SHA256.fullmatch(found):
        raise section.error(key, repr(found), "64 lower-case hex digits (SHA-256)")
    return found


def _archs(top: _Section) -> tuple[int, ...]:
    found = top.get("archs", list, "a list of compute capabilities")
    if not found or not all(type(arch) is int and 10 <= arch < 1000 for arch in found):
        raise top.error("archs", repr(found), "compute capabilities such as 89, at least one")
    return tuple(found)


def _profile(top: _Section, key: str, rank: int) -> Profile:
    section = top.section(key)
    shapes = []
    for name in ("minimum", "optimum", "maximum"):
        found = section.get(name, list, f"a list of {rank} sizes")
        if len(found) != rank or not all(type(side) is int and side >= 1 for side in found):
            raise section.error(name, repr(found), f"{rank} sizes of at least 1")
        shapes.append(tuple(found))
    if not all(low <= best <= high for low, best, high in zip(*shapes, strict=True)):
        raise section.error("optimum", repr(shapes[1]), f"sizes from {shapes[0]} to {shapes[2]}")
    return Profile(*shapes)


def _end(section: _Section) -> TensorSpec:
    shape = section.get("shape", list, "a list of sizes, null where free")
    if not shape or not all(side is None or (type(side) is int and side >= 1) for side in shape):
        raise section.error("shape", repr(shape), "sizes of at least 1, null where free")
    return TensorSpec(section.string("name"), np.dtype(section.choice("dtype", _DTYPES)), tuple(shape))


def _again(path: Path) -> str:
    """The build command as far as an engine's file name tells it."""
    for flavour in FLAVOURS:
        for role in ROLES:
            for precision in PRECISIONS:
                if path.name == engine_name(role, precision, flavour):
                    return build_command("BUNDLE", role, precision, flavour, frames=precision != "fp32")
    return "latentseg build BUNDLE --target tensorrt"


# --- comparing --------------------------------------------------------------------------------------------------------


def check_bundle(file: EngineFile, bundle: Bundle) -> None:
    """Raise ArtifactError unless the engine was built from this bundle's model as it is now."""
    bundle.model_path(file.role)  # the bundle has the role
    expected = bundle.manifest["files"][file.role]["sha256"]
    if file.model_sha256 != expected:
        raise ArtifactError(
            f"{file.file_name} was built from another model: SHA-256 {file.model_sha256[:16]}, the {file.role} of "
            f"bundle '{bundle.name}' has {expected[:16]}",
            hint=file.rebuild(bundle_spec(bundle)),
        )


def check_machine(file: EngineFile, flavour: str, version: str, capability: int, bundle: str = "") -> None:
    """Raise ArtifactError unless the engine is for this machine.

    flavour, version: of the TensorRT that is to load it.  capability: of the GPU, major * 10 + minor.
    bundle: its path or name, for the command that builds the engine again.
    """
    if file.flavour != flavour:
        raise ArtifactError(
            f"{file.file_name} is a {NAMES[file.flavour]} engine, and would be loaded by {NAMES[flavour]}",
            hint=_other_flavour(file, flavour, bundle),
        )
    if file.version != version:
        raise ArtifactError(
            f"{file.file_name} was built by {NAMES[flavour]} {file.version}, this machine has {version}",
            hint=file.rebuild(bundle),
        )
    if capability in file.archs:
        return
    found = (
        f"{file.file_name} was built for compute capability {dotted(file.archs)}, this GPU has {dotted([capability])}"
    )
    if flavour == "tensorrt-rtx" and capability not in RTX_ARCHS:
        raise ArtifactError(
            f"{found}, which TensorRT-RTX offers no target for ({dotted(RTX_ARCHS)})",
            hint=_other_flavour(file, "tensorrt", bundle),
        )
    raise ArtifactError(found, hint=file.rebuild(bundle, capability if flavour == "tensorrt-rtx" else None))


def _other_flavour(file: EngineFile, flavour: str, bundle: str) -> str:
    name, frames = bundle or file.bundle, file.source == "frames"
    return build_command(name, file.role, file.precision, flavour, str(file.frames), frames=frames)


def find_engine(
    bundle: Bundle,
    role: str,
    precision: str,
    flavour: str | None = None,
    version: str | None = None,
    capability: int | None = None,
    folder: Path | None = None,
) -> Path:
    """A bundle's engine file, its sidecar and hash checked, and compared with the bundle.

    flavour: None takes what there is; of both, the one whose package is installed, full TensorRT first.
    version, capability: given both, the machine is compared as well.  folder: None is the bundle's own `engines`.
    Raises ArtifactError naming the command that builds it, UsageError for a name that does not exist.
    """
    for kind, value, known in (
        ("role", role, ROLES),
        ("precision", precision, PRECISIONS),
        ("flavour", flavour, FLAVOURS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"unknown {kind} '{value}', expected one of {', '.join(known)}")
    folder = folder or bundle.path / ENGINE_FOLDER
    wanted = [flavour] if flavour else sorted(FLAVOURS, key=lambda name: not is_installed(name))
    there = [path for name in wanted if (path := folder / engine_name(role, precision, name)).is_file()]
    spec = bundle_spec(bundle)
    if not there:
        names = " or ".join(NAMES[name] for name in wanted)
        frames = precision not in bundle.variants(role)
        command = build_command(spec, role, precision, wanted[0], frames=frames).removesuffix(" --overwrite")
        raise ArtifactError(f"bundle '{bundle.name}' has no {names} engine of its {role} in {precision}", hint=command)
    path = there[0]
    try:
        file = read_engine(path)
        check_bundle(file, bundle)
        if version is not None and capability is not None:
            check_machine(file, file.flavour, version, capability, spec)
        engine_bytes(path, file)
    except ArtifactError as error:
        error.hint = error.hint.replace("build BUNDLE ", f"build {shlex.quote(spec)} ")
        raise
    return path


# --- writing ----------------------------------------------------------------------------------------------------------


def sidecar_json(file: EngineFile) -> dict[str, Any]:
    """A sidecar as the JSON object that `parse_sidecar` reads."""

    def end(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}

    def profile(shapes: Profile) -> dict[str, list[int]]:
        return {key: list(getattr(shapes, key)) for key in ("minimum", "optimum", "maximum")}

    return {
        "schema": SCHEMA, "bundle": file.bundle, "role": file.role, "precision": file.precision,
        "flavour": file.flavour, "version": file.version, "archs": list(file.archs),
        "profile": profile(file.profile), "frames": profile(file.frames),
        "input": end(file.input), "output": end(file.output), "network": file.network,
        "model_sha256": file.model_sha256, "onnx_sha256": file.onnx_sha256, "source": file.source,
        "engine_sha256": file.engine_sha256, "bytes": file.bytes,
        "verification": file.verification, "created_by": file.created_by,
    }  # fmt: skip


def write_engine(folder: Path, data: bytes, file: EngineFile, *, overwrite: bool = False) -> Path:
    """Write an engine, then its sidecar, each replaced in one step; returns the engine's path.

    An older sidecar goes first, and so does the runtime cache of the engine that is replaced.
    Raises UsageError where there is an engine and not `overwrite`, ArtifactError for facts that would not load again,
    OutputError.
    """
    path = folder / file.file_name
    if path.exists() and not overwrite:
        raise UsageError(f"the engine exists: {path}", hint="add --overwrite, or choose another folder with -o")
    raw = sidecar_json(file)
    if parse_sidecar(raw, path.name) != file or (len(data), hashlib.sha256(data).hexdigest()) != (
        file.bytes,
        file.engine_sha256,
    ):
        raise ArtifactError(f"{path.name}: the sidecar does not describe the engine that it is written with")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".runtime"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        _replace(path, data)
        _replace(path.with_suffix(".json"), (json.dumps(raw, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
