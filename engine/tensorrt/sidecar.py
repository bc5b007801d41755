"""Engine files and their sidecars: `ROLE-PRECISION-FLAVOUR.engine`, byte-pure, beside a `.json` that says what it is.

A sidecar is compared with the bundle and the machine before TensorRT sees a byte of the engine: the library's own
answer to an engine of another version or GPU is a log line at best. It is written last, so that an engine that is half
written has none. Beside them lie caches that only save time: `.timing` (of a build with full TensorRT) and `.runtime`
(the kernels that TensorRT-RTX made when the engine ran). One-file engines (`...-HxW.one-file.engine`) lie there too:
they are read and compared the same way, and never taken for a model's.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path

from ...errors import ArtifactError, InputError, OutputError, UsageError
from ..bundle import Bundle, shipped_bundles
from ..manifest import ROLES
from ..placement import PRECISIONS
from .api import FLAVOURS, NAMES, RTX_ARCHS, dotted, is_installed
from .engine_file import (
    ONE_FILE_SUFFIX,
    SUFFIX,
    EngineFile,
    OneFileEngine,
    Profile,
    build_command,
    engine_name,
    one_file_command,
    one_file_name,
)
from .sidecar_json import parse_sidecar, sidecar_json

__all__ = [
    "ENGINE_FOLDER", "SUFFIX", "EngineFile", "OneFileEngine", "Profile", "build_command", "bundle_spec", "check_bundle",
    "check_machine", "engine_bytes", "engine_name", "find_engine", "one_file_name", "parse_sidecar", "read_any_engine",
    "read_engine", "read_one_file", "sidecar_json", "write_engine",
]  # fmt: skip

ENGINE_FOLDER = "engines"
AnyEngine = EngineFile | OneFileEngine
_MAX_SIDECAR_BYTES = 4 << 20
_ONE_FILE = re.compile(
    rf"segmenter-({'|'.join(PRECISIONS)})-tensorrt-([1-9]\d*)x([1-9]\d*){re.escape(ONE_FILE_SUFFIX)}"
)


def bundle_spec(bundle: Bundle) -> str:
    """What names this bundle on a command line: a shipped one's name, or its path."""
    return bundle.name if shipped_bundles().get(bundle.name) == bundle.path else str(bundle.path)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_engine(path: Path) -> EngineFile:
    """The checked sidecar of a model's engine. Raises as `read_any_engine`, and ArtifactError for a one-file engine."""
    file = read_any_engine(path)
    if not isinstance(file, EngineFile):
        raise ArtifactError(
            f"{path.name} is a one-file engine, from bytes to labels, expected an engine of a model",
            hint="your own program feeds it (docs/tensorrt.md); latentseg runs: "
            + build_command("BUNDLE", file.role, file.precision, file.flavour, frames=file.source == "frames"),
        )
    return file


def read_one_file(path: Path) -> OneFileEngine:
    """The checked sidecar of a one-file engine. Raises as `read_any_engine`, and ArtifactError for a model's engine."""
    file = read_any_engine(path)
    if not isinstance(file, OneFileEngine):
        height, width = file.frames.optimum[1:]
        raise ArtifactError(
            f"{path.name} is an engine of the {file.role} alone, expected a one-file engine",
            hint=one_file_command("BUNDLE", file.precision, (height, width), frames=file.source == "frames"),
        )
    return file


def read_any_engine(path: Path) -> AnyEngine:
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


def engine_bytes(path: Path, file: AnyEngine) -> bytes:
    """An engine file's bytes, compared with the sidecar's hash. Raises ArtifactError, InputError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint="check its permissions") from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.engine_sha256:
        raise ArtifactError(f"{path} was changed: SHA-256 is {found}, expected {file.engine_sha256}", hint=_again(path))
    return data


def _again(path: Path) -> str:
    """The build command as far as an engine's file name tells it."""
    for flavour in FLAVOURS:
        for role in ROLES:
            for precision in PRECISIONS:
                if path.name == engine_name(role, precision, flavour):
                    return build_command("BUNDLE", role, precision, flavour, frames=precision != "fp32")
    if found := _ONE_FILE.fullmatch(path.name):
        precision, height, width = found.groups()
        return one_file_command("BUNDLE", precision, (int(height), int(width)), frames=precision != "fp32")
    return "latentseg build BUNDLE --target tensorrt"


# --- comparing --------------------------------------------------------------------------------------------------------


def check_bundle(file: AnyEngine, bundle: Bundle) -> None:
    """Raise ArtifactError unless the engine was built from this bundle's model as it is now."""
    bundle.model_path(file.role)  # the bundle has the role
    expected = bundle.manifest["files"][file.role]["sha256"]
    if file.model_sha256 != expected:
        raise ArtifactError(
            f"{file.file_name} was built from another model: SHA-256 {file.model_sha256[:16]}, the {file.role} of "
            f"bundle '{bundle.name}' has {expected[:16]}",
            hint=file.rebuild(bundle_spec(bundle)),
        )


def check_machine(file: AnyEngine, flavour: str, version: str, capability: int, bundle: str = "") -> None:
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


def _other_flavour(file: AnyEngine, flavour: str, bundle: str) -> str:
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


def write_engine(folder: Path, data: bytes, file: AnyEngine, *, overwrite: bool = False) -> Path:
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
