"""What an engine file is: its name, what is known of it, the shapes that it takes, the command that builds it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from ... import __version__
from ...kernels.gpu.one_file import DecodeSpec
from ..backends.base import TensorSpec

SUFFIX = ".engine"
ONE_FILE_SUFFIX = ".one-file" + SUFFIX

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The shapes that an engine takes: each dimension from `minimum` to `maximum`, tuned for `optimum`."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    def admits(self, shape: Shape) -> bool:
        """Whether a shape lies within."""
        return len(shape) == len(self.minimum) and all(
            low <= side <= high for low, side, high in zip(self.minimum, shape, self.maximum, strict=True)
        )

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.minimum, self.optimum, self.maximum))


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """What the sidecars of both kinds of engine say.

    Parameters
    ----------
    bundle: name of the bundle.  role, precision, flavour: which of its models, and how it was built.
    version: of TensorRT, in full; an engine runs with no other.
    model_sha256: of the bundle's fp32 ONNX file.  onnx_sha256: of the ONNX file that was built, after rewriting.
    source: where that file came from: "bundle", or "frames" (rewritten with a user's frames, which a rebuild needs).
    engine_sha256, bytes: of the engine file.
    archs: compute capabilities (major * 10 + minor) that it runs on; full TensorRT: the one of the GPU that built it.
    frames: what it takes as (batch, height, width) of source frames.
    network: counts of layers, as checked before the build.  verification: what is known of the labels' accuracy.
    """

    bundle: str
    role: str
    precision: str
    flavour: str
    version: str
    model_sha256: str
    onnx_sha256: str
    source: str
    engine_sha256: str
    bytes: int
    archs: tuple[int, ...]
    frames: Profile
    network: dict[str, int] = field(default_factory=dict)
    verification: dict[str, Any] = field(default_factory=dict)
    created_by: str = f"latentseg {__version__}"

    @property
    def file_name(self) -> str:
        raise NotImplementedError

    def rebuild(self, bundle: str = "", arch: int | None = None) -> str:
        """The command that builds this engine again; with `arch`, for that capability as well."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EngineFile(_Engine):
    """What the sidecar of a model's engine says.

    profile: shapes of the input.  input, output: name, dtype and shape of the network's ends.
    """

    profile: Profile
    input: TensorSpec
    output: TensorSpec

    @property
    def file_name(self) -> str:
        return engine_name(self.role, self.precision, self.flavour)

    def rebuild(self, bundle: str = "", arch: int | None = None) -> str:
        archs = self.archs if arch is None else tuple(sorted({*self.archs, arch}))
        return build_command(
            bundle or self.bundle, self.role, self.precision, self.flavour, str(self.frames),
            archs if self.flavour == "tensorrt-rtx" else (), frames=self.source == "frames",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OneFileEngine(_Engine):
    """What the sidecar of a one-file engine says: bytes in, labels out (kernels/gpu/one_file.py), of one frame size.

    codec_id: 32 bytes; the codec whose streams it takes.  spec: the streams' latents and lanes, as the engine has them.
    inputs, outputs: name, dtype and shape of the network's ends.  profiles: shapes of each input.
    kernel: facts of the plugin's PTX (entry, PTX version, target, threads, shared memory, registers).
    """

    codec_id: bytes
    spec: DecodeSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: dict[str, Profile]
    kernel: dict[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        _, height, width = self.frames.maximum
        return height, width

    @property
    def file_name(self) -> str:
        return one_file_name(self.precision, self.flavour, self.size)

    def rebuild(self, bundle: str = "", arch: int | None = None) -> str:
        return one_file_command(
            bundle or self.bundle, self.precision, self.size, self.frames.maximum[0], frames=self.source == "frames"
        )


def engine_name(role: str, precision: str, flavour: str) -> str:
    """`segmenter-fp16-tensorrt.engine`."""
    return f"{role}-{precision}-{flavour}{SUFFIX}"


def one_file_name(precision: str, flavour: str, size: tuple[int, int]) -> str:
    """`segmenter-fp16-tensorrt-360x480.one-file.engine`; size: (H, W)."""
    return f"segmenter-{precision}-{flavour}-{size[0]}x{size[1]}{ONE_FILE_SUFFIX}"


def build_command(
    bundle: str,
    role: str,
    precision: str,
    flavour: str,
    profile: str = "",
    archs: tuple[int, ...] = (),
    *,
    frames: bool,
) -> str:
    """The command line that builds an engine; what only the user knows is in capitals.

    frames: whether the precision is to be made with frames, and not taken from the bundle.
    """
    words = ["latentseg", "build", bundle, "--target", flavour, "--role", role, "--precision", precision]
    if frames:
        words += ["--frames", "FOLDER"]
    if profile:
        words += ["--profile", profile]
    if archs:
        words += ["--arch", *map(str, archs)]
    return " ".join(shlex.quote(word) for word in [*words, "--overwrite"])


def one_file_command(
    bundle: str, precision: str, size: tuple[int, int], batch: int | None = None, *, frames: bool
) -> str:
    """The command line that builds a one-file engine. size: (H, W).  batch: the most frames, None: the default.

    frames: as in `build_command`.
    """
    words = ["latentseg", "build", bundle, "--target", "tensorrt", "--one-file", "--size", f"{size[0]}x{size[1]}"]
    if batch is not None:
        words += ["--batch", str(batch)]
    words += ["--precision", precision]
    if frames:
        words += ["--frames", "FOLDER"]
    return " ".join(shlex.quote(word) for word in [*words, "--overwrite"])
