"""The one-file engine's network: entropy decode + int2float as a TensorRT plugin before the segmenter.

    words, lanes, channels, ranges   \\
                                      |  plugin ── latent (F, C, h, w) ── segmenter ── labels
    tables, table_map_words           |     └───── scratch ── smallest ── damaged int32 (F,)
    (constants)                      /

What goes in and comes out is in kernels/gpu/one_file.py. The plugin is a "quickly deployable" one that is compiled
ahead of time: TensorRT writes its PTX into the engine file, and a machine that runs the file needs neither Python,
Triton nor this module. Only full TensorRT has such plugins, and none was at hand: no engine was built from this yet. It
follows the source of the Python package (github.com/NVIDIA/TensorRT: python/packaging/bindings_wheel/tensorrt/plugin,
samples/python/quickly_deployable_plugins) and of the parser (github.com/onnx/onnx-tensorrt: importerUtils.cpp,
createPlugin), and all that runs without TensorRT is tested without it. What was learnt there:

- The kernel gets input pointers, then the extra arguments, which are 32-bit, then output pointers (`aot_impl`).
- The ONNX parser takes a node whose op_type is the plugin's name, with attributes `plugin_namespace` and `aot`.
- Such a plugin has no workspace (IPluginV3QuickBuild asks for none), so the kernel's scratch memory is an output. It
  also holds the flags of damage that the graph reads: no rule says that an output is there which nothing reads.
- Its tensors are int32 and floats alone: 8-bit ones are refused by some versions.
- Annotations are checked as classes, and `from __future__ import annotations` makes strings of them: so they are set.
- A plugin id can be registered once in a process, and attributes are not kept in the engine. So the sizes that a kernel
  is launched with are not attributes, and are part of the name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bitstream import context_model as model
from ..engine.backends.base import TensorSpec
from ..engine.bundle import Bundle
from ..engine.tensorrt.api import Builder, Network, TensorRt
from ..engine.tensorrt.engine_file import Profile
from ..errors import ArtifactError, BackendMissingError, OutputError, UsageError, missing_extra
from ..kernels.gpu import shapes
from ..kernels.gpu.batch import table_map_words
from ..kernels.gpu.one_file import DAMAGED, FED, FLOATS, LABELS, DecodeSpec, Shape
from .tensorrt import parse_onnx, tensor_spec

if TYPE_CHECKING:
    import onnx

    from ..kernels.triton.ptx import PtxKernel

NAMESPACE = "latentseg"
CONSTANT = ("tables", "table_map_words")  # what is in the engine
NUMBERS = ("word_count", "frames", "channel_count", "height", "width", "ranges_a_frame")
RESULTS = ("out", "scratch")
ARGUMENTS = (*FED, *CONSTANT, *NUMBERS, *RESULTS)
OPSET = 18
MOST_WORDS = 2**26 - 1  # bits in the payloads are 31-bit numbers in the kernel
_ONNX = {"float32": "FLOAT", "float16": "FLOAT16", "int32": "INT32"}
_NEEDED = ("register", "aot_impl", "from_shape_expr", "cdiv", "KernelLaunchParams", "SymInt32", "SymIntExprs", "op")
_INSTEAD = "build the engine without --one-file: the kernels then run before it"

CeilDiv = Callable[[Any, int], Any]


def history_words(spec: DecodeSpec) -> int:
    """32-bit words of a program's history, which stand before its flags of damage."""
    return shapes.history_words(shapes.LANES, spec.tile)


def result_shapes(spec: DecodeSpec, frames: Any, cdiv: CeilDiv) -> dict[str, Shape]:
    """The plugin's outputs, by int arithmetic or symbolic expressions, which have no reflected operators."""
    programs = cdiv(frames * (spec.tiles * spec.latent[0]), shapes.LANES)
    flags = cdiv(frames, shapes.LANES) * shapes.LANES
    return {"out": (frames, *spec.latent), "scratch": (programs, flags + history_words(spec))}


def profile(spec: DecodeSpec, least: int, usual: int, most: int) -> dict[str, Profile]:
    """The smallest, usual and largest shape of each engine input, for so many frames a batch.

    Payloads are taken as 2 bits a symbol where usual, and at most as large as the coder can make them.
    Raises UsageError unless 1 <= least <= usual <= most.
    """
    if not 1 <= least <= usual <= most:
        raise UsageError(f"a profile of {least}, {usual} and {most} frames, expected 1 <= least <= usual <= most")
    worst = min(MOST_WORDS, most * spec.payload_limit // 4 + 4)  # a batch's bytes end at a multiple of 16
    usually = min(worst, usual * int(np.prod(spec.latent)) // 16 + 1)
    bounds = (spec.fed_shapes(1, least), spec.fed_shapes(usually, usual), spec.fed_shapes(worst, most))
    return {name: Profile(bounds[0][name], bounds[1][name], bounds[2][name]) for name in FED}


def plugin_module(api: TensorRt) -> Any:
    """TensorRT's `plugin` module, once it is seen to offer plugins that are compiled ahead of time (10.9 and later).

    Raises ArtifactError for TensorRT-RTX or a version without them, BackendMissingError where it does not import.
    """
    if api.is_rtx:
        raise ArtifactError(f"{api.name} {api.version} has no Python plugins, full TensorRT has", hint=_INSTEAD)
    try:
        trtp = importlib.import_module(f"{api.module.__name__}.plugin")
    except ImportError as error:
        raise BackendMissingError(
            f"{api.name} {api.version} is installed, but its module 'plugin' does not import: {error}", hint=_INSTEAD
        ) from error
    lacking = [f"plugin.{name}" for name in _NEEDED if not hasattr(trtp, name)]
    # What the package itself asks for, before it defines `aot_impl` for use (_export.py, IS_AOT_ENABLED).
    lacking += [] if hasattr(api.module, "QuickPluginCreationRequest") else ["QuickPluginCreationRequest"]
    if lacking:
        raise ArtifactError(
            f"{api.name} {api.version} lacks {', '.join(lacking)}, expected 10.9 or later, whose Python plugins can be "
            "compiled ahead of time",
            hint=_INSTEAD,
        )
    return trtp


def register_plugin(api: TensorRt, spec: DecodeSpec, kernel: PtxKernel) -> str:
    """Make the plugin known to this process's TensorRT: its id. Once is enough; more often does nothing.

    kernel: of `compile_plugin`. Raises as `plugin_module` does, and ArtifactError for another stream's kernel.
    """
    trtp = plugin_module(api)
    made_for = (kernel.bits, kernel.tile, kernel.floats, kernel.arch)
    expected = (spec.bits, spec.tile, spec.floats, spec.arch)
    names = tuple(name for name, _ in kernel.arguments)
    if made_for != expected or names != ARGUMENTS:
        raise ArtifactError(
            f"a kernel for {made_for} with arguments {', '.join(names)}, expected one for {expected} with "
            f"{', '.join(ARGUMENTS)}",
            hint="compile it anew: compile_plugin",
        )
    if hasattr(getattr(trtp.op, NAMESPACE, None), spec.name):
        return f"{NAMESPACE}::{spec.name}"
    dtypes = {"out": getattr(api.module, spec.floats), "scratch": api.module.int32}

    def describe(words: Any, lanes: Any, channels: Any, ranges: Any, tables: Any, table_map_words: Any) -> Any:
        results = result_shapes(spec, channels.shape_expr[0], trtp.cdiv)
        return tuple(trtp.from_shape_expr(shape, dtypes[name]) for name, shape in results.items())

    def compiled(
        words: Any, lanes: Any, channels: Any, ranges: Any, tables: Any, table_map_words: Any, outputs: Any, tactic: Any
    ) -> Any:
        frames = channels.shape_expr[0]
        launch = trtp.KernelLaunchParams()
        launch.grid_x = result_shapes(spec, frames, trtp.cdiv)["scratch"][0]
        launch.block_x = 32 * kernel.warps
        launch.shared_mem = kernel.shared
        numbers = (words.shape_expr[0], frames, *spec.latent, spec.ranges_a_frame)  # as `NUMBERS`
        extra = trtp.SymIntExprs(len(numbers))
        for index, number in enumerate(numbers):
            extra[index] = trtp.SymInt32(number)
        return kernel.name, kernel.text, launch, extra

    several: Any = tuple
    tensor = trtp.TensorDesc
    describe.__annotations__ = dict.fromkeys((*FED, *CONSTANT), tensor) | {"return": several[tensor, tensor]}
    compiled.__annotations__ = {"return": several[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]}
    plugin_id = f"{NAMESPACE}::{spec.name}"
    trtp.register(plugin_id)(describe)
    trtp.aot_impl(plugin_id)(compiled)
    return plugin_id


def latent_floats(segmenter: Path) -> str:
    """What a segmenter's ONNX file takes: "float32" or "float16". Raises ArtifactError for something else."""
    found = _load(segmenter)
    names = {_onnx_type(floats): floats for floats in FLOATS}
    return names[_latent_input(found).type.tensor_type.elem_type]


def one_file_model(segmenter: Path, spec: DecodeSpec) -> onnx.ModelProto:
    """The segmenter's ONNX model with the plugin before it: the inputs are `FED`, the outputs the labels and `damaged`.

    Raises ArtifactError where the two do not fit.
    """
    from onnx import helper, numpy_helper

    result = _load(segmenter)
    graph, latent = result.graph, _latent_input(result)
    dims = [dim.dim_value for dim in latent.type.tensor_type.shape.dim[1:]]
    floats = latent_floats(segmenter)
    unfit = [f"{found} for {own}" for found, own in zip(dims, spec.latent, strict=True) if found not in (0, own)]
    if floats != spec.floats or unfit:
        raise ArtifactError(f"{segmenter.name} takes {floats} {dims}, expected {spec.floats} {list(spec.latent)}")
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {part.name for part in (*graph.initializer, *graph.value_info, *graph.output)}
    if clash := taken & ({*FED, *CONSTANT, DAMAGED, "scratch", "flags", "flag", "shape_of_channels"} - {latent.name}):
        raise ArtifactError(f"{segmenter.name} has tensors named {', '.join(sorted(clash))}", hint="rename them")
    plugin = helper.make_node(
        spec.name, [*FED, *CONSTANT], [latent.name, "scratch"], spec.name,
        domain=NAMESPACE, plugin_namespace=NAMESPACE, plugin_version="1", aot=1,
    )  # fmt: skip
    # A row of scratch is a program's history and then its flags, padded; the smallest of a column is the frame's.
    nodes = [
        plugin,
        helper.make_node("Slice", ["scratch", "flags_start", "flags_end", "flags_axis"], ["flags"]),
        helper.make_node("ReduceMin", ["flags", "frames_axis"], ["flag"], keepdims=0),
        helper.make_node("Shape", ["channels"], ["shape_of_channels"], start=0, end=1),
        helper.make_node("Slice", ["flag", "frames_axis", "shape_of_channels", "frames_axis"], [DAMAGED]),
    ]
    constants = {
        "tables": model.decoding_tables().view(np.int32).reshape(-1),
        "table_map_words": table_map_words().view(np.int32),
        "flags_start": [history_words(spec)], "flags_end": [2**31 - 1], "flags_axis": [1], "frames_axis": [0],
    }  # fmt: skip
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    kept = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *kept])
    for name, shape in spec.fed_shapes("words", "frames").items():
        graph.input.append(helper.make_tensor_value_info(name, _onnx_type(FED[name]), shape))
    graph.output.append(helper.make_tensor_value_info(DAMAGED, _onnx_type("int32"), ("frames",)))
    known = helper.make_tensor_value_info(latent.name, _onnx_type(floats), ("frames", *spec.latent))
    graph.value_info.append(known)
    result.opset_import.append(helper.make_opsetid(NAMESPACE, 1))
    return result


@dataclass(frozen=True)
class OneFile:
    """What a one-file engine is built from. model: the ONNX file to parse, with the plugin's node in it."""

    model: Path
    spec: DecodeSpec
    kernel: PtxKernel


def prepare_one_file(bundle: Bundle, segmenter: Path, size: tuple[int, int], arch: int, folder: Path) -> OneFile:
    """Write the model with its plugin into `folder`, and compile the plugin's kernel. Needs Triton, but no GPU.

    segmenter: the bundle's, of any precision.  size: (H, W) of the frames.  arch: compute capability of the GPU.
    Raises BackendMissingError without Triton or onnx, ArtifactError where parts do not fit, and as `compile_plugin`.
    """
    spec = DecodeSpec.of(bundle.header(*size), latent_floats(segmenter), arch)
    model = one_file_model(segmenter, spec)
    try:
        from ..kernels.triton.ptx import compile_plugin
    except ImportError:
        raise missing_extra("triton", "triton") from None
    kernel = compile_plugin(spec.bits, spec.tile, arch, spec.floats)
    path = folder / f"{segmenter.stem}-one-file.onnx"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return OneFile(path, spec, kernel)


def one_file_network(
    api: TensorRt, builder: Builder, one: OneFile
) -> tuple[Network, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(the parsed network, its inputs as `FED`, labels and damage), its plugin registered. `profile` is for its inputs.

    Raises as `register_plugin`, and ArtifactError where the model does not parse or has other ends than it should.
    """
    register_plugin(api, one.spec, one.kernel)
    network = parse_onnx(api, builder, one.model)
    inputs = [tensor_spec(api, network.get_input(index)) for index in range(network.num_inputs)]
    outputs = [tensor_spec(api, network.get_output(index)) for index in range(network.num_outputs)]
    outputs.sort(key=lambda end: end.name == DAMAGED)
    free = one.spec.fed_shapes(None, None)
    expected = {name: TensorSpec(name, np.dtype(kind), free[name]) for name, kind in FED.items()}
    made = [(str(end.dtype), len(end.shape), end.name == DAMAGED) for end in outputs]
    if {end.name: end for end in inputs} != expected or made != [(LABELS, 3, False), ("int32", 1, True)]:
        raise ArtifactError(
            f"the network takes {', '.join(map(str, inputs))} and gives {', '.join(map(str, outputs))}, expected "
            f"{', '.join(map(str, expected.values()))}, and labels: {LABELS}[?, ?, ?], {DAMAGED}: int32[?]"
        )
    return network, tuple({end.name: end for end in inputs}[name] for name in FED), tuple(outputs)


def _onnx_type(name: str) -> int:
    from onnx import TensorProto

    return int(getattr(TensorProto, _ONNX[name]))


def _load(segmenter: Path) -> onnx.ModelProto:
    try:
        import onnx
    except ImportError:
        raise missing_extra("onnx", "export") from None
    found = onnx.load(str(segmenter))
    opset = max((entry.version for entry in found.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OPSET:
        raise ArtifactError(f"{segmenter.name} has opset {opset}, expected {OPSET} or later", hint="export it again")
    return found


def _latent_input(found: onnx.ModelProto) -> onnx.ValueInfoProto:
    fixed = {tensor.name for tensor in found.graph.initializer}
    inputs = [tensor for tensor in found.graph.input if tensor.name not in fixed]
    kinds = [tensor.type.tensor_type.elem_type for tensor in inputs]
    floats = [_onnx_type(name) for name in FLOATS]
    if len(inputs) != 1 or kinds[0] not in floats or len(inputs[0].type.tensor_type.shape.dim) != 4:
        listed = ", ".join(tensor.name for tensor in inputs) or "none"
        raise ArtifactError(f"a model with inputs {listed}, expected one latent (N, C, h, w) of floats: a segmenter's")
    latent: onnx.ValueInfoProto = inputs[0]
    return latent
