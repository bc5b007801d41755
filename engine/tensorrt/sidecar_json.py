"""A sidecar as JSON, of a model's engine or of a one-file engine: what may stand in it, checked key by key.

Every lie has its own message: which key, what was found, what was expected.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ...errors import ArtifactError
from ...kernels.gpu.one_file import DAMAGED, FED, FLOATS, LABELS, DecodeSpec
from ..backends.base import TensorSpec
from ..manifest import ROLES, _Section
from ..placement import PRECISIONS
from .api import FLAVOURS
from .engine_file import EngineFile, OneFileEngine, Profile

SCHEMA = 1
SOURCES = ("bundle", "frames")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = ("uint8", "float32", "float16")
_KERNEL = ("warps", "shared", "registers")


def parse_sidecar(raw: object, where: str) -> EngineFile | OneFileEngine:
    """Check a decoded sidecar; `where` is named in every error. One with a section `one_file` is a one-file engine's.

    Raises ArtifactError.
    """
    top = _Section(raw, where, "")
    schema = top.integer("schema", 1, None)
    if schema > SCHEMA:
        raise ArtifactError(
            f"{where}: schema {schema} is newer than this program knows, expected at most {SCHEMA}",
            hint="pip install --upgrade latentseg",
        )
    one_file = "one_file" in top.value
    common: dict[str, Any] = {
        "bundle": top.string("bundle"),
        "role": top.choice("role", ("segmenter",) if one_file else tuple(ROLES)),
        "precision": top.choice("precision", PRECISIONS),
        "flavour": top.choice("flavour", ("tensorrt",) if one_file else tuple(FLAVOURS)),
        "version": top.string("version"),
        "model_sha256": _digest(top, "model_sha256"),
        "onnx_sha256": _digest(top, "onnx_sha256"),
        "source": top.choice("source", SOURCES),
        "engine_sha256": _digest(top, "engine_sha256"),
        "bytes": top.integer("bytes", 1, None),
        "archs": _archs(top),
        "frames": _profile(top, "frames", 3),
        "network": {key: top.section("network").integer(key, 0, None) for key in top.section("network").value},
        "verification": dict(top.section("verification").value),
        "created_by": top.string("created_by"),
    }
    if one_file:
        return _one_file(top, common)
    source = _end(top.section("input"))
    return EngineFile(
        **common, input=source, output=_end(top.section("output")), profile=_fitting(top, "profile", source)
    )


def _one_file(top: _Section, common: dict[str, Any]) -> OneFileEngine:
    section, frames = top.section("one_file"), common["frames"]
    if frames.minimum[1:] != frames.maximum[1:]:
        raise top.error("frames", str(frames), "one frame size: a one-file engine takes no other")
    stream, kernel = section.section("stream"), section.section("kernel")
    spec = DecodeSpec(
        bits=stream.integer("bits", 1, 8),
        tile=_sizes(stream, "tile", 2),
        latent=_sizes(stream, "latent", 3),
        ranges_a_frame=stream.integer("ranges_a_frame", 1, None),
        floats=stream.choice("floats", FLOATS),
        arch=kernel.integer("arch", 10, 999),
        payload_limit=stream.integer("payload_limit", 1, None),
    )
    if spec.ranges_a_frame not in (1, spec.latent[0]):
        raise stream.error("ranges_a_frame", str(spec.ranges_a_frame), f"1 or {spec.latent[0]}")
    if (name := kernel.string("name")) != spec.name:
        raise kernel.error("name", repr(name), repr(spec.name))
    if common["archs"] != (spec.arch,):
        raise top.error("archs", repr(list(common["archs"])), f"[{spec.arch}], its kernel's")
    inputs, outputs = section.section("inputs"), section.section("outputs")
    free = spec.fed_shapes(None, None)
    ends = tuple(_named(inputs, name, TensorSpec(name, np.dtype(kind), free[name])) for name, kind in FED.items())
    labels = [name for name in outputs.value if name != DAMAGED]
    if len(outputs.value) != 2 or len(labels) != 1:
        raise section.error("outputs", ", ".join(outputs.value) or "empty", f"labels and {DAMAGED}")
    free_labels, damaged = (
        TensorSpec(labels[0], np.dtype(LABELS), (None, None, None)), TensorSpec(DAMAGED, np.dtype("int32"), (None,))
    )  # fmt: skip
    profiles = {end.name: _fitting(inputs.section(end.name), "profile", end) for end in ends}
    for name in ("lanes", "channels", "ranges"):
        found = tuple(getattr(profiles[name], key)[0] for key in ("minimum", "optimum", "maximum"))
        batches = tuple(getattr(frames, key)[0] for key in ("minimum", "optimum", "maximum"))
        if found != batches:
            raise inputs.section(name).error("profile", str(profiles[name]), f"batches of {batches}, as in 'frames'")
    return OneFileEngine(
        **common,
        codec_id=bytes.fromhex(_digest(stream, "codec_id")),
        spec=spec,
        inputs=ends,
        outputs=(_named(outputs, labels[0], free_labels), _named(outputs, DAMAGED, damaged)),
        profiles=profiles,
        kernel={
            "entry": kernel.string("entry"), "ptx": kernel.string("ptx"), "target": kernel.string("target"),
            **{key: kernel.integer(key, 0, None) for key in _KERNEL},
        },
    )  # fmt: skip


def sidecar_json(file: EngineFile | OneFileEngine) -> dict[str, Any]:
    """A sidecar as the JSON object that `parse_sidecar` reads."""
    raw = {
        "schema": SCHEMA, "bundle": file.bundle, "role": file.role, "precision": file.precision,
        "flavour": file.flavour, "version": file.version, "archs": list(file.archs),
    }  # fmt: skip
    if isinstance(file, EngineFile):
        raw |= {"profile": _shapes(file.profile), "frames": _shapes(file.frames)}
        raw |= {"input": _end_json(file.input), "output": _end_json(file.output)}
    else:
        raw |= {"frames": _shapes(file.frames), "one_file": _one_file_json(file)}
    return raw | {
        "network": file.network,
        "model_sha256": file.model_sha256, "onnx_sha256": file.onnx_sha256, "source": file.source,
        "engine_sha256": file.engine_sha256, "bytes": file.bytes,
        "verification": file.verification, "created_by": file.created_by,
    }  # fmt: skip


def _one_file_json(file: OneFileEngine) -> dict[str, Any]:
    spec = file.spec

    def ends(specs: tuple[TensorSpec, ...]) -> dict[str, dict[str, Any]]:
        return {end.name: {"dtype": str(end.dtype), "shape": list(end.shape)} for end in specs}

    return {
        "stream": {
            "codec_id": file.codec_id.hex(), "bits": spec.bits, "tile": list(spec.tile), "latent": list(spec.latent),
            "ranges_a_frame": spec.ranges_a_frame, "floats": spec.floats, "payload_limit": spec.payload_limit,
        },
        "kernel": {"name": spec.name, "arch": spec.arch, **file.kernel},
        "inputs": {
            name: {**end, "profile": _shapes(file.profiles[name])} for name, end in ends(file.inputs).items()
        },
        "outputs": ends(file.outputs),
    }  # fmt: skip


# --- parts ------------------------------------------------------------------------------------------------------------


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


def _sizes(section: _Section, key: str, count: int) -> Any:
    """A tuple of so many sizes."""
    found = section.get(key, list, f"a list of {count} sizes")
    if len(found) != count or not all(type(side) is int and side >= 1 for side in found):
        raise section.error(key, repr(found), f"{count} sizes of at least 1")
    return tuple(found)


def _profile(top: _Section, key: str, rank: int) -> Profile:
    section = top.section(key)
    low, best, high = (_sizes(section, name, rank) for name in ("minimum", "optimum", "maximum"))
    if not all(least <= usual <= most for least, usual, most in zip(low, best, high, strict=True)):
        raise section.error("optimum", repr(best), f"sizes from {low} to {high}")
    return Profile(low, best, high)


def _fitting(top: _Section, key: str, source: TensorSpec) -> Profile:
    """The profile of an input, whose shapes its dimensions allow."""
    profile = _profile(top, key, len(source.shape))
    for name in ("minimum", "optimum", "maximum"):
        shape = getattr(profile, name)
        if any(want is not None and want != have for want, have in zip(source.shape, shape, strict=True)):
            raise top.section(key).error(name, "x".join(map(str, shape)), f"a shape that {source} allows")
    return profile


def _end(section: _Section, name: str = "", dtypes: tuple[str, ...] = _DTYPES) -> TensorSpec:
    shape = section.get("shape", list, "a list of sizes, null where free")
    if not shape or not all(side is None or (type(side) is int and side >= 1) for side in shape):
        raise section.error("shape", repr(shape), "sizes of at least 1, null where free")
    return TensorSpec(name or section.string("name"), np.dtype(section.choice("dtype", dtypes)), tuple(shape))


def _named(sections: _Section, name: str, expected: TensorSpec) -> TensorSpec:
    """An end of a one-file engine, fixed wherever `expected` is; it may be so elsewhere."""
    found = _end(sections.section(name), name, (str(expected.dtype),))
    fits = len(found.shape) == len(expected.shape) and all(
        want is None or want == have for want, have in zip(expected.shape, found.shape, strict=True)
    )
    if not fits:
        raise sections.error(name, str(found), str(expected))
    return found


def _end_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}


def _shapes(profile: Profile) -> dict[str, list[int]]:
    return {key: list(getattr(profile, key)) for key in ("minimum", "optimum", "maximum")}
