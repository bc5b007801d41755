"""A bundle's segmenter as a one-file engine of full TensorRT: compressed bytes in, labels out, for one frame size.

The steps are those of every other engine (`tensorrt`), with the decoder's plugin before the segmenter
(`tensorrt_plugin`). No such engine was built yet: full TensorRT was not at hand, and TensorRT-RTX has no plugins.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..engine.bundle import Bundle
from ..engine.tensorrt.api import TensorRt
from ..engine.tensorrt.engine_file import OneFileEngine, Profile, one_file_name
from ..engine.tensorrt.gpus import this_gpu
from ..engine.tensorrt.sidecar import ENGINE_FOLDER, write_engine
from ..errors import InputError, UsageError, missing_extra
from ..kernels.gpu.batch import batch_layout
from ..kernels.gpu.one_file import check_one_file_stream
from .tensorrt import check_precision, check_request, input_profile, source_model
from .tensorrt_build import OnProgress, serialize
from .tensorrt_plugin import one_file_network, plugin_module, prepare_one_file, profile

BATCH = 8
_ROLE = "segmenter"


def build_one_file(
    bundle: Bundle,
    precision: str,
    size: tuple[int, int],
    batch: int = BATCH,
    folder: Path | None = None,
    *,
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
    labels: Sequence[npt.NDArray[np.uint8]] | None = None,
    calibration: int = 64,
    workspace: int | None = None,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
) -> tuple[Path, OneFileEngine, tuple[str, ...]]:
    """Build a one-file engine for this machine's GPU, and write it with its sidecar: (path, sidecar, warnings).

    size: (H, W) of the frames.  batch: the most frames a batch, for which it is tuned; it takes 1 as well.
    folder, images, labels, calibration, workspace: as of `build_role`.

    Raises
    ------
    UsageError: what was asked for contradicts itself, or the engine exists. BackendMissingError: no full TensorRT, GPU,
    Triton or onnx. ArtifactError: this TensorRT has no plugins that are compiled ahead of time, a batch too large, or a
    network that is not what was asked for. VerificationError: the accuracy gate failed, or the kernel's PTX is not what
    TensorRT could launch. OutputError.
    """
    trt, arch = check_one_file(bundle, precision, size, batch, images is not None)
    frames = Profile((1, *size), (batch, *size), (batch, *size))
    folder = folder or bundle.path / ENGINE_FOLDER
    path = folder / one_file_name(precision, trt.flavour, size)
    if path.exists() and not overwrite:
        raise UsageError(f"the engine exists: {path}", hint="add --overwrite, or choose another folder with -o")
    with tempfile.TemporaryDirectory() as scratch:
        smallest = input_profile(bundle, _ROLE, frames).minimum
        segmenter, source, report = source_model(
            bundle, _ROLE, precision, smallest, Path(scratch), images, labels, calibration
        )
        one = prepare_one_file(bundle, segmenter, size, arch, Path(scratch))
        profiles = profile(one.spec, 1, batch, batch)
        builder = trt.builder()
        network, inputs, outputs = one_file_network(trt, builder, one)
        counts = check_precision(network, precision)
        data = serialize(
            trt, builder, network, profiles, one.model.name, (), path.with_suffix(".timing"), on_progress, workspace
        )
        onnx_sha256 = hashlib.sha256(one.model.read_bytes()).hexdigest()
    kernel = one.kernel
    file = OneFileEngine(
        bundle=bundle.name, role=_ROLE, precision=precision, flavour=trt.flavour, version=trt.version,
        model_sha256=bundle.manifest["files"][_ROLE]["sha256"], onnx_sha256=onnx_sha256, source=source,
        engine_sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), archs=(arch,), frames=frames,
        codec_id=bundle.codec.id, spec=one.spec, profiles=profiles, inputs=inputs, outputs=outputs,
        kernel={
            "entry": kernel.name, "ptx": kernel.version, "target": kernel.target, "warps": kernel.warps,
            "shared": kernel.shared, "registers": kernel.registers,
        },
        network=counts, verification=report,
    )  # fmt: skip
    return write_engine(folder, data, file, overwrite=overwrite), file, tuple(trt.log.warnings())


def check_one_file(
    bundle: Bundle, precision: str, size: tuple[int, int], batch: int, with_frames: bool
) -> tuple[TensorRt, int]:
    """Refuse what `build_one_file` would refuse before it builds; returns (TensorRT, this GPU's compute capability).

    with_frames: whether there are frames to make a precision with.
    """
    trt, _ = check_request(bundle, _ROLE, precision, "tensorrt", None, with_frames)
    plugin_module(trt)
    try:
        header = bundle.header(*size)
    except InputError as error:  # of a stream it would be damage, here it is what was asked for
        raise UsageError(f"frames of {size[0]}x{size[1]}: {error}", hint="choose smaller frames") from error
    check_one_file_stream(header)
    batch_layout(header, batch)  # a batch that the kernel can count
    if importlib.util.find_spec("triton") is None:
        raise missing_extra("triton", "triton")
    return trt, this_gpu().capability
