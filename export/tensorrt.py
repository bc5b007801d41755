"""A bundle's model to a TensorRT engine: parse, check the network, build for one or more GPUs, write beside a sidecar.

Precision is written into the ONNX file before the build (`precision`), since networks are strongly typed; whether it
truly arrived is read off the parsed network's tensors. What a GPU does with an engine is not proved here: TensorRT-RTX
builds without one, and only then for several compute capabilities at once.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine.backends.base import TensorSpec
from ..engine.bundle import Bundle
from ..engine.manifest import CLASSIFYING_ROLES, LABELLING_ROLES
from ..engine.tensorrt.api import DTYPES, Network, TensorRt, open_flavour
from ..engine.tensorrt.gpus import this_gpu
from ..engine.tensorrt.sidecar import ENGINE_FOLDER, EngineFile, Profile, engine_name, write_engine
from ..errors import ArtifactError, UsageError
from .tensorrt_build import OnProgress, serialize
from .tensorrt_onnx import cast_outside

RTX_TARGETS = (80, 86, 89, 120)
_FREE = None
_FRAMES = (_FREE, _FREE, _FREE, 3)
_LABELS = (_FREE, _FREE, _FREE)
_PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")  # the layers that a precision is about


@dataclass(frozen=True)
class Built:
    """An engine's bytes and the facts of its build.

    version: of TensorRT.  archs: what it was built for.  input, output: the network's ends.
    network: counts of its layers.  warnings: what TensorRT said, each once.
    """

    data: bytes
    version: str
    archs: tuple[int, ...]
    input: TensorSpec
    output: TensorSpec
    network: dict[str, int]
    warnings: tuple[str, ...]


def contract(bundle: Bundle, role: str, precision: str = "fp32") -> tuple[TensorSpec, TensorSpec]:
    """What a bundle promises of a role's input and output (docs/design.md, contract 3); names are left empty.

    A segmenter in fp16 takes its latent in float16, which the GPU's decoder writes.
    """
    frames = TensorSpec("", np.dtype(np.uint8), _FRAMES)
    floats = np.dtype(np.float16 if (role, precision) == ("segmenter", "fp16") else np.float32)
    latents = TensorSpec("", floats, (_FREE, bundle.codec.channels, _FREE, _FREE))
    labels = TensorSpec("", np.dtype(np.uint8), _LABELS)
    return {
        "compressor": (frames, latents), "decompressor": (latents, frames),
        "segmenter": (latents, labels), "rgb_segmenter": (frames, labels),
    }[role]  # fmt: skip


def default_frames(stride: int) -> Profile:
    """Frames that an engine takes unless told otherwise: one of the smallest, to 16 of 1080 x 1920."""
    return Profile((1, stride, stride), (8, 360, 480), (16, 1080, 1920))


def input_profile(bundle: Bundle, role: str, frames: Profile) -> Profile:
    """The shapes of a role's input for frames of (batch, height, width), padded to the codec's stride."""
    stride, (source, _) = bundle.codec.stride, contract(bundle, role)

    def shape(size: tuple[int, ...]) -> tuple[int, ...]:
        batch, *sides = size
        _, h, w = bundle.latent_shape(*sides)
        return (batch, h * stride, w * stride, 3) if source.shape == _FRAMES else (batch, bundle.codec.channels, h, w)

    return Profile(shape(frames.minimum), shape(frames.optimum), shape(frames.maximum))


def build_role(
    bundle: Bundle,
    role: str,
    precision: str,
    flavour: str,
    frames: Profile | None = None,
    archs: Sequence[int] | None = None,
    folder: Path | None = None,
    *,
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
    labels: Sequence[npt.NDArray[np.uint8]] | None = None,
    calibration: int = 64,
    workspace: int | None = None,
    on_progress: OnProgress | None = None,
    overwrite: bool = False,
) -> tuple[Path, EngineFile, Built]:
    """Build one of a bundle's models as an engine, and write it with its sidecar.

    frames: (batch, height, width) of source frames, least, best and most; None: `default_frames`.
    archs: compute capabilities; (): this machine's GPU; None: RTX_TARGETS with TensorRT-RTX, else this machine's GPU,
    for which alone full TensorRT builds.
    folder: None is the bundle's own `engines`.  workspace: bytes of device memory for the build's tactics; None: all.
    images, labels: real frames uint8 (H, W, 3) and their classes, to make fp16 or int8 with and to judge it on. Without
    them the bundle's own file of that precision is built, where it has one.
    calibration: how many of the images int8 is calibrated on.

    Raises
    ------
    UsageError: what was asked for contradicts itself, or the engine exists. VerificationError: the accuracy gate
    failed. ArtifactError: TensorRT cannot build it, or the network is not what was asked for. BackendMissingError.
    OutputError.
    """
    trt, wanted = check_request(bundle, role, precision, flavour, archs, images is not None)
    frames = frames or default_frames(bundle.codec.stride)
    profile = input_profile(bundle, role, frames)
    folder = folder or bundle.path / ENGINE_FOLDER
    path = folder / engine_name(role, precision, flavour)
    if path.exists() and not overwrite:
        raise UsageError(f"the engine exists: {path}", hint="add --overwrite, or choose another folder with -o")
    with tempfile.TemporaryDirectory() as scratch:
        onnx_path, source, report = source_model(
            bundle, role, precision, profile.minimum, Path(scratch), images, labels, calibration
        )
        built = build_engine(
            onnx_path, trt, profile, wanted, None if trt.is_rtx else path.with_suffix(".timing"), on_progress,
            ends=contract(bundle, role, precision), precision=precision, workspace=workspace,
        )  # fmt: skip
        onnx_sha256 = hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    file = EngineFile(
        bundle=bundle.name, role=role, precision=precision, flavour=flavour, version=built.version,
        model_sha256=bundle.manifest["files"][role]["sha256"], onnx_sha256=onnx_sha256, source=source,
        engine_sha256=hashlib.sha256(built.data).hexdigest(), bytes=len(built.data), archs=built.archs,
        profile=profile, frames=frames, input=built.input, output=built.output,
        network=built.network, verification=report,
    )  # fmt: skip
    return write_engine(folder, built.data, file, overwrite=overwrite), file, built


def check_request(
    bundle: Bundle, role: str, precision: str, flavour: str, archs: Sequence[int] | None, with_frames: bool
) -> tuple[TensorRt, tuple[int, ...]]:
    """Refuse what `build_role` would refuse before it builds; returns (TensorRT, compute capabilities).

    with_frames: whether there are frames to make a precision with.
    """
    bundle.model_path(role)
    if role in CLASSIFYING_ROLES:
        raise UsageError(
            f"an engine of the {role}: the backend tensorrt gives label maps, it does not classify",
            hint="--backend onnxruntime runs the bundle's own file",
        )
    if precision != "fp32" and role not in LABELLING_ROLES:
        raise UsageError(
            f"the {role} in {precision}: a codec stays in fp32, its symbols must be the ones it was trained with",
            hint="--precision fp32, or --role segmenter",
        )
    if not with_frames and precision not in bundle.variants(role):
        raise UsageError(
            f"{precision} without frames: its accuracy is judged, and int8 calibrated, on real frames",
            hint="--frames FOLDER, or with labels --data DIR --layout NAME --split NAME",
        )
    trt = open_flavour(flavour)
    wanted = (RTX_TARGETS if trt.is_rtx else ()) if archs is None else tuple(dict.fromkeys(archs))
    trt.check_archs(wanted)
    return trt, wanted


def source_model(
    bundle: Bundle,
    role: str,
    precision: str,
    smallest: tuple[int, ...],
    scratch: Path,
    images: Sequence[npt.NDArray[np.uint8]] | None,
    labels: Sequence[npt.NDArray[np.uint8]] | None,
    calibration: int,
) -> tuple[Path, str, dict[str, Any]]:
    """(ONNX file of a precision that TensorRT takes, where it came from, what is known of its accuracy).

    smallest: shape of the input that an engine takes at least.  scratch: folder for what is made here.
    Raises VerificationError where the accuracy gate fails.
    """
    if precision == "fp32":
        path, source, report = bundle.model_path(role), "bundle", {"gate": "none: the bundle's own network"}
    elif images is not None:
        from .precision import rewrite

        made = rewrite(bundle, role, precision, scratch, images, labels, calibration)
        path, source, report = made.path, "frames", made.report
    else:
        path, source = bundle.model_path(role, precision), "bundle"
        report = bundle.manifest["variants"][role][precision]["report"]
    path, moved = cast_outside(path, scratch / "outside.onnx", contract(bundle, role, precision)[0], smallest)
    return path, source, {**report, "casts_moved": moved} if moved else report


def build_engine(
    onnx_path: Path,
    trt: TensorRt,
    profile: Profile,
    archs: Sequence[int] = (),
    timing_cache: Path | None = None,
    on_progress: OnProgress | None = None,
    *,
    ends: tuple[TensorSpec, TensorSpec],
    precision: str,
    workspace: int | None = None,
) -> Built:
    """Parse an ONNX file, check the network against `ends` and `precision`, and build an engine of it.

    archs: of TensorRT-RTX; () is this machine's GPU.  timing_cache: full TensorRT's measurements, read and kept there.
    Raises ArtifactError with the parser's or the builder's own words, BackendMissingError, KeyboardInterrupt (once the
    builder has stopped).
    """
    targets = tuple(archs) or (this_gpu().capability,)
    builder = trt.builder()
    network = parse_onnx(trt, builder, onnx_path)
    source, result, counts = check_network(trt, network, ends, precision)
    data = serialize(
        trt, builder, network, {source.name: profile}, onnx_path.name, archs, timing_cache, on_progress, workspace
    )
    return Built(data, trt.version, targets, source, result, counts, tuple(trt.log.warnings()))


def parse_onnx(trt: TensorRt, builder: Any, path: Path) -> Network:
    """A network out of an ONNX file. Raises ArtifactError with the parser's words on each node that it refuses."""
    network = trt.network(builder)
    parser = trt.parser(network)
    if parser.parse_from_file(str(path)):
        return network
    told = []
    for error in (parser.get_error(index) for index in range(parser.num_errors)):
        node = getattr(error, "node_name", None)
        name = (node() if callable(node) else node) or "the model"
        told.append(f"{name}: {' '.join(str(error.desc()).split())[:300]}")
    raise ArtifactError(
        f"{trt.name} {trt.version} cannot parse {path.name}: {'; '.join(told) or trt.log.reason()}",
        hint="latentseg verify checks the bundle; ONNX files of other opsets than 18 are not tested",
    )


def check_network(
    trt: TensorRt, network: Network, ends: tuple[TensorSpec, TensorSpec], precision: str
) -> tuple[TensorSpec, TensorSpec, dict[str, int]]:
    """(input, output, counts of layers) of a parsed network that is what was asked for.

    The counts: layers; products (convolutions and matrix products), those of them in half precision, and those whose
    operands are both dequantised int8; quantize and dequantize layers. Raises ArtifactError.
    """
    found = (network.num_inputs, network.num_outputs)
    if found != (1, 1):
        raise ArtifactError(f"the network has {found[0]} inputs and {found[1]} outputs, expected one of each")
    specs = [tensor_spec(trt, network.get_input(0)), tensor_spec(trt, network.get_output(0))]
    for what, spec, expected in zip(("input", "output"), specs, ends, strict=True):
        if spec.dtype != expected.dtype or not _shape_fits(spec, expected):
            raise ArtifactError(
                f"the network's {what} is {spec}, expected {str(expected)[2:]}", hint="export the bundle again"
            )
    return specs[0], specs[1], check_precision(network, precision)


def check_precision(network: Network, precision: str) -> dict[str, int]:
    """A parsed network's counts of layers, as `check_network` has them. ArtifactError for another precision."""
    counts = _counts(network)
    half = counts["half_products"] or (counts["products"] == 0 and counts["half_tensors"])
    quantised = counts["int8_products"] or (counts["products"] == 0 and counts["quantize"])
    is_there = {
        "fp32": not counts["half_products"] and not counts["quantize"] and not counts["int8_products"],
        "fp16": bool(half) and not counts["quantize"],
        "int8": bool(quantised),
    }
    if not is_there[precision]:
        listed = ", ".join(f"{key} {value}" for key, value in counts.items())
        raise ArtifactError(f"the network is not in {precision}: it has {listed}")
    return counts


def _counts(network: Network) -> dict[str, int]:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    names = [layer.type.name for layer in layers]
    outputs = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    dequantised = {
        tensor.name
        for layer, name in zip(layers, names, strict=True)
        if name == "DEQUANTIZE" and (tensor := layer.get_output(0)) is not None
    }
    operands = [
        [tensor for index in range(min(2, layer.num_inputs)) if (tensor := layer.get_input(index)) is not None]
        for layer, name in zip(layers, names, strict=True)
        if name in _PRODUCTS
    ]
    return {
        "layers": len(layers),
        "products": len(operands),
        "half_products": sum(tensors[0].dtype.name == "HALF" for tensors in operands),
        "int8_products": sum(all(t.name in dequantised for t in tensors) for tensors in operands),
        "quantize": names.count("QUANTIZE"),
        "dequantize": names.count("DEQUANTIZE"),
        "half_tensors": sum(tensor is not None and tensor.dtype.name == "HALF" for tensor in outputs),
    }


def tensor_spec(trt: TensorRt, tensor: Any) -> TensorSpec:
    """A network tensor's name, dtype and shape. ArtifactError for a dtype that no end of ours has."""
    if tensor.dtype.name not in DTYPES:
        raise ArtifactError(f"{trt.name}: {tensor.name} is {tensor.dtype.name}, expected one of {', '.join(DTYPES)}")
    shape = tuple(int(side) if side >= 0 else None for side in tensor.shape)
    return TensorSpec(tensor.name, np.dtype(DTYPES[tensor.dtype.name]), shape)


def _shape_fits(spec: TensorSpec, expected: TensorSpec) -> bool:
    """Fixed where the contract is fixed, free where it is free; the parser may leave an output's fixed side free."""
    return len(spec.shape) == len(expected.shape) and all(
        have is None or have == want for have, want in zip(spec.shape, expected.shape, strict=True)
    )
