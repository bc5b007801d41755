"""Compiled kernels in a folder: `<kernel>-<variant>-sm<arch>.cubin` files beside one `index.json` that describes them.

`kernels/triton/compile.py` makes them, where Triton is; `launch.py` runs them, where it is not. The cubins stay
byte-pure; what is needed to launch one, and what it was made for, is in the index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, InputError, OutputError, UsageError

SCHEMA = 1
INDEX_NAME = "index.json"
KERNELS = ("context_decode", "minmax", "quantize", "dequantize")


@dataclass(frozen=True)
class KernelImage:
    """One compiled kernel.

    kernel: its name, and that of its function.  variant: what it was specialised for: the type of its floats.
    arch: compute capability, major * 10 + minor.  cubin: the machine code.
    arguments: (name, kind) in launch order; kind is "pointer", "int32" or "scratch" (a pointer of Triton's own: null).
    warps, shared: threads / 32 of a program, and its bytes of dynamic shared memory.  registers: a thread's.
    """

    kernel: str
    variant: str
    arch: int
    cubin: bytes
    arguments: tuple[tuple[str, str], ...]
    warps: int
    shared: int
    registers: int

    @property
    def file_name(self) -> str:
        return f"{self.kernel}-{self.variant}-sm{self.arch}.cubin"


def _runs_on(arch: int, capability: int) -> bool:
    return arch < 90 and arch // 10 == capability // 10 and arch <= capability


@dataclass(frozen=True)
class KernelSet:
    """Compiled kernels for the streams of one codec.

    bits, tile, codebook (whether they have one): of those streams, for which the kernels are specialised.
    triton: version of the compiler.
    """

    bits: int
    tile: tuple[int, int]
    triton: str
    images: tuple[KernelImage, ...]
    codebook: bool = False

    def archs(self) -> list[int]:
        return sorted({image.arch for image in self.images})

    def find(self, kernel: str, variant: str, capability: int) -> KernelImage:
        """The image that runs on a device of this compute capability (major * 10 + minor).

        Up to 89 a cubin runs on its own major version, at its minor or above; from 90 on Triton builds for one
        capability alone.
        """
        fitting = [
            image
            for image in self.images
            if (image.kernel, image.variant) == (kernel, variant)
            and (image.arch == capability or _runs_on(image.arch, capability))
        ]
        if not fitting:
            raise ArtifactError(
                f"no compiled kernel {kernel} ({variant}) for compute capability {capability / 10}; there are: "
                f"{', '.join(f'sm{arch}' for arch in self.archs()) or 'none'}",
                hint=f"latentseg build BUNDLE --target kernels --arch {capability}",
            )
        return max(fitting, key=lambda image: image.arch)

    def check_stream(self, bits: int, tile: tuple[int, int], codebook: bool = False) -> None:
        """Raise ArtifactError unless the kernels were compiled for streams like this."""

        def name(bits: int, tile: tuple[int, int], codebook: bool) -> str:
            return f"{bits} bits and tiles of {tile[0]}x{tile[1]}{', with a codebook' if codebook else ''}"

        own, found = (self.bits, self.tile, self.codebook), (bits, tile, codebook)
        if found != own:
            raise ArtifactError(
                f"the kernels were compiled for {name(*own)}, but the stream has {name(*found)}",
                hint="latentseg build BUNDLE --target kernels, with the stream's bundle",
            )


def save_kernels(kernels: KernelSet, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a set into a folder, its index last; returns the index's path. Raises UsageError, OutputError."""
    index = folder / INDEX_NAME
    if index.exists() and not overwrite:
        raise UsageError(f"{folder} already holds compiled kernels", hint="add --overwrite, or choose another folder")
    rows = []
    for image in kernels.images:
        row = {key: value for key, value in asdict(image).items() if key != "cubin"}
        digest = hashlib.sha256(image.cubin).hexdigest()
        rows.append({**row, "path": image.file_name, "bytes": len(image.cubin), "sha256": digest})
    raw = {
        "schema": SCHEMA, "bits": kernels.bits, "tile": list(kernels.tile), "codebook": kernels.codebook,
        "triton": kernels.triton, "images": rows,
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)  # a set that is half written has no index
        for kernel in KERNELS:
            for old in folder.glob(f"{kernel}-*.cubin"):
                old.unlink()
        for image in kernels.images:
            (folder / image.file_name).write_bytes(image.cubin)
        partial = index.with_name(INDEX_NAME + ".partial")
        partial.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        partial.replace(index)
    except OSError as error:
        raise OutputError(f"cannot write kernels to {folder}: {error.strerror or error}") from error
    return index


def load_kernels(folder: Path) -> KernelSet:
    """Read a set, every file checked against the index.

    Raises InputError where there is none, ArtifactError where the index or a file is not what it should be.
    """
    index = folder / INDEX_NAME
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"no compiled kernels in {folder}: {error.strerror or error}",
            hint="latentseg build BUNDLE --target kernels",
        ) from None
    except ValueError as error:
        raise ArtifactError(f"{index} is not JSON: {error}", hint="build the kernels again") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise ArtifactError(f"{index} has schema {found!r}, expected {SCHEMA}", hint="build the kernels again")
    try:
        images = tuple(_image(folder, row) for row in raw["images"])
        rows, columns = (int(side) for side in raw["tile"])
        codebook = bool(raw.get("codebook", False))  # an index from before there were codebooks does not say
        return KernelSet(int(raw["bits"]), (rows, columns), str(raw["triton"]), images, codebook)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{index} is damaged: {error!r}", hint="build the kernels again") from None


def _image(folder: Path, row: dict[str, Any]) -> KernelImage:
    name = str(row["path"])
    if Path(name).name != name or row["kernel"] not in KERNELS:
        raise ValueError(f"an image {name!r} of kernel {row['kernel']!r}")
    try:
        cubin = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"compiled kernel {name} is missing: {error.strerror or error}", hint="build the kernels again"
        ) from None
    if hashlib.sha256(cubin).hexdigest() != row["sha256"]:
        raise ArtifactError(f"compiled kernel {folder / name} was changed", hint="build the kernels again")
    arguments: Sequence[tuple[str, str]] = [(str(a), str(kind)) for a, kind in row["arguments"]]
    if any(kind not in ("pointer", "int32", "scratch") for _, kind in arguments):
        raise ValueError(f"arguments {arguments}")
    return KernelImage(
        str(row["kernel"]), str(row["variant"]), int(row["arch"]), cubin, tuple(arguments),
        int(row["warps"]), int(row["shared"]), int(row["registers"]),
    )  # fmt: skip
