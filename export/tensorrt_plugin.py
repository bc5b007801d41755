"""The one-file engine: entropy decode + int2float as a TensorRT plugin before the segmenter, so that bytes give labels.

    words int32 (W,)                 the payloads' bytes      \\
    lanes int32 (F, tiles, C, 2)     first byte and bytes      |  plugin ── latent (F, C, h, w) ── segmenter ── labels
    channels int32 (F, C)            mode, f, g, centre        |     └───── scratch ── smallest ── damaged int32 (F,)
    ranges float32 (F, R, 2)         lo and step              /

An engine takes batches of any F up to its profile's, of one frame size. The plugin is a "quickly deployable" one that
is compiled ahead of time: TensorRT writes its PTX into the engine file, and a machine that runs the file needs neither
Python, Triton nor this module. Only full TensorRT has such plugins, and none was at hand: no engine was built from this
yet. It follows the source of the Python package (github.com/NVIDIA/TensorRT: python/packaging/bindings_wheel/tensorrt/
plugin, samples/python/quickly_deployable_plugins) and of the parser (github.com/onnx/onnx-tensorrt: importerUtils.cpp,
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
from numpy.typing import NDArray

from ..bitstream import StreamHeader
from ..bitstream import context_model as model
from ..engine.bundle import Bundle
from ..engine.tensorrt.api import Builder, Network, TensorRt
from ..errors import ArtifactError, BackendMissingError, OutputError, UsageError, missing_extra
from ..kernels.gpu import shapes
from ..kernels.gpu.batch import Batch, check_gpu_stream, payload_limit, table_map_words

if TYPE_CHECKING:
    import onnx

    from ..kernels.triton.ptx import PtxKernel

NAMESPACE = "latentseg"
FED = ("words", "lanes", "channels", "ranges")  # what a batch brings; the engine's inputs
CONSTANT = ("tables", "table_map_words")  # what is in the engine
NUMBERS = ("word_count", "frames", "channel_count", "height", "width", "ranges_a_frame")
RESULTS = ("out", "scratch")
DAMAGED = "damaged"
ALIGNMENT = 256  # of an address that an engine is given (NvInferRuntime.h, IExecutionContext::setTensorAddress)
OPSET = 18
MOST_WORDS = 2**26 - 1  # bits in the payloads are 31-bit numbers in the kernel
_FLOATS = {"float32": "FLOAT", "float16": "FLOAT16"}  # of ONNX
_NEEDED = ("register", "aot_impl", "from_shape_expr", "cdiv", "KernelLaunchParams", "SymInt32", "SymIntExprs", "op")

Shape = tuple[Any, ...]
CeilDiv = Callable[[Any, int], Any]


@dataclass(frozen=True)
class DecodeSpec:
    """What a plugin's kernel and shapes follow from.

    bits, tile: of the streams.  latent: (C, h, w) of a frame.  ranges_a_frame: C, or 1 with one range a frame.
    floats: "float32" or "float16", what the segmenter takes.  arch: compute capability of the kernel, such as 90.
    payload_limit: bytes of the largest payload of a frame.
    """

    bits: int
    tile: tuple[int, int]
    latent: tuple[int, int, int]
    ranges_a_frame: int
    floats: str
    arch: int
    payload_limit: int

    @classmethod
    def of(cls, header: StreamHeader, floats: str, arch: int) -> DecodeSpec:
        """For streams like this one. Raises ArtifactError for a coder that no GPU decodes, UsageError for floats."""
        check_gpu_stream(header)
        if floats not in _FLOATS:
            raise UsageError(f"floats {floats!r}, expected {' or '.join(_FLOATS)}")
        ranges = header.latent_shape[0] if header.scaling.mode == "channel" else 1
        return cls(header.bits, header.tile, header.latent_shape, ranges, floats, arch, payload_limit(header))

    @property
    def tiles(self) -> int:
        _, height, width = self.latent
        return -(-height // self.tile[0]) * -(-width // self.tile[1])

    @property
    def history(self) -> int:
        """32-bit words of a program's history, which stand before its flags of damage."""
        return shapes.history_words(shapes.LANES, self.tile)

    @property
    def name(self) -> str:
        """The plugin's name, and its node's op_type: another one for all that makes another kernel or launch."""
        latent = "x".join(map(str, self.latent))
        what = f"{self.bits}b_{self.tile[0]}x{self.tile[1]}_{latent}_r{self.ranges_a_frame}_{self.floats}"
        return f"ContextDecode_{what}_sm{self.arch}"

    def fed_shapes(self, words: Any, frames: Any) -> dict[str, Shape]:
        """The engine's inputs; `words` and `frames` may be numbers, names or expressions."""
        channels = self.latent[0]
        return {
            "words": (words,), "lanes": (frames, self.tiles, channels, 2), "channels": (frames, channels),
            "ranges": (frames, self.ranges_a_frame, 2),
        }  # fmt: skip

    def result_shapes(self, frames: Any, cdiv: CeilDiv) -> dict[str, Shape]:
        """The plugin's outputs, by int arithmetic or symbolic expressions, which have no reflected operators."""
        programs = cdiv(frames * (self.tiles * self.latent[0]), shapes.LANES)
        flags = cdiv(frames, shapes.LANES) * shapes.LANES
        return {"out": (frames, *self.latent), "scratch": (programs, flags + self.history)}

    def numbers(self, words: Any, frames: Any) -> tuple[Any, ...]:
        """The kernel's extra arguments, in the order of `NUMBERS`."""
        return (words, frames, *self.latent, self.ranges_a_frame)


def profile(spec: DecodeSpec, least: int, usual: int, most: int) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The smallest, usual and largest shape of each engine input, for so many frames a batch.

    Payloads are taken as 2 bits a symbol where usual, and at most as large as the coder can make them.
    Raises UsageError unless 1 <= least <= usual <= most.
    """
    if not 1 <= least <= usual <= most:
        raise UsageError(f"a profile of {least}, {usual} and {most} frames, expected 1 <= least <= usual <= most")
    worst = min(MOST_WORDS, most * spec.payload_limit // 4 + 4)  # a batch's bytes end at a multiple of 16
    usually = min(worst, usual * int(np.prod(spec.latent)) // 16 + 1)
    bounds = (spec.fed_shapes(1, least), spec.fed_shapes(usually, usual), spec.fed_shapes(worst, most))
    return {name: (bounds[0][name], bounds[1][name], bounds[2][name]) for name in FED}


def bind_batch(
    batch: Batch, spec: DecodeSpec, words: int | None = None
) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """A planned batch as the engine takes it: one run of bytes, and each input's array in it by name.

    The arrays (int32, `ranges` float32) are views of the bytes at multiples of 256: one copy brings them to the device,
    and a view's place in them is its tensor's address there. Read the engine's `damaged` with `check_damage`.

    words: length of the input "words", the rest zeros, so that batches share one shape; None takes what there is.
    Raises ArtifactError for a batch of streams that the engine was not built for, UsageError for too few words.
    """
    found = (batch.lanes_a_frame, batch.ranges_a_frame)
    expected = (spec.tiles * spec.latent[0], spec.ranges_a_frame)
    if found != expected:
        raise ArtifactError(
            f"a batch of {found[0]} lanes and {found[1]} ranges a frame, but the engine was built for {expected[0]} "
            f"and {expected[1]}",
            hint="build a one-file engine for this frame size",
        )
    length = max(1, batch.word_count) if words is None else words  # blank frames have no bytes, an input has some
    if length < max(1, batch.word_count):
        raise UsageError(f"{length} words for a batch of {batch.word_count}")
    wanted = spec.fed_shapes(length, batch.frames)
    starts = dict(zip(FED, (batch.payloads, batch.lanes, batch.channels, batch.ranges), strict=True))
    places, end = {}, 0
    for name, shape in wanted.items():
        places[name] = end
        end += -(-4 * int(np.prod(shape)) // ALIGNMENT) * ALIGNMENT
    data = np.zeros(end, np.uint8)
    views: dict[str, NDArray[Any]] = {}
    for name, shape in wanted.items():
        size = 4 * (batch.word_count if name == "words" else int(np.prod(shape)))
        data[places[name] : places[name] + size] = batch.data[starts[name] : starts[name] + size]
        view = data[places[name] : places[name] + 4 * int(np.prod(shape))]
        views[name] = view.view(np.float32 if name == "ranges" else np.int32).reshape(shape)
    return data, views


def plugin_module(api: TensorRt) -> Any:
    """TensorRT's `plugin` module, once it is seen to offer plugins that are compiled ahead of time (10.9 and later).

    Raises ArtifactError for TensorRT-RTX or a version without them, BackendMissingError where it does not import.
    """
    instead = "build the engine without --one-file: the kernels then run before it"
    if api.is_rtx:
        raise ArtifactError(f"{api.name} {api.version} has no Python plugins, full TensorRT has", hint=instead)
    try:
        trtp = importlib.import_module(f"{api.module.__name__}.plugin")
    except ImportError as error:
        raise BackendMissingError(
            f"{api.name} {api.version} is installed, but its module 'plugin' does not import: {error}", hint=instead
        ) from error
    lacking = [f"plugin.{name}" for name in _NEEDED if not hasattr(trtp, name)]
    # What the package itself asks for, before it defines `aot_impl` for use (_export.py, IS_AOT_ENABLED).
    lacking += [] if hasattr(api.module, "QuickPluginCreationRequest") else ["QuickPluginCreationRequest"]
    if lacking:
        raise ArtifactError(
            f"{api.name} {api.version} lacks {', '.join(lacking)}, expected 10.9 or later, whose Python plugins can be "
            "compiled ahead of time",
            hint=instead,
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
    if made_for != expected or names != FED + CONSTANT + NUMBERS + RESULTS:
        raise ArtifactError(
            f"a kernel for {made_for} with arguments {', '.join(names)}, expected one for {expected} with "
            f"{', '.join(FED + CONSTANT + NUMBERS + RESULTS)}",
            hint="compile it anew: compile_plugin",
        )
    if hasattr(getattr(trtp.op, NAMESPACE, None), spec.name):
        return f"{NAMESPACE}::{spec.name}"
    dtypes = {"out": getattr(api.module, spec.floats), "scratch": api.module.int32}

    def describe(words: Any, lanes: Any, channels: Any, ranges: Any, tables: Any, table_map_words: Any) -> Any:
        results = spec.result_shapes(channels.shape_expr[0], trtp.cdiv)
        return tuple(trtp.from_shape_expr(shape, dtypes[name]) for name, shape in results.items())

    def compiled(
        words: Any, lanes: Any, channels: Any, ranges: Any, tables: Any, table_map_words: Any, outputs: Any, tactic: Any
    ) -> Any:
        frames = channels.shape_expr[0]
        launch = trtp.KernelLaunchParams()
        launch.grid_x = spec.result_shapes(frames, trtp.cdiv)["scratch"][0]
        launch.block_x = 32 * kernel.warps
        launch.shared_mem = kernel.shared
        numbers = spec.numbers(words.shape_expr[0], frames)
        extra = trtp.SymIntExprs(len(numbers))
        for index, number in enumerate(numbers):
            extra[index] = trtp.SymInt32(number)
        return kernel.name, kernel.text, launch, extra

    several: Any = tuple
    tensor = trtp.TensorDesc
    describe.__annotations__ = dict.fromkeys(FED + CONSTANT, tensor) | {"return": several[tensor, tensor]}
    compiled.__annotations__ = {"return": several[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]}
    plugin_id = f"{NAMESPACE}::{spec.name}"
    trtp.register(plugin_id)(describe)
    trtp.aot_impl(plugin_id)(compiled)
    return plugin_id


def latent_floats(segmenter: Path) -> str:
    """What a segmenter's ONNX file takes: "float32" or "float16". Raises ArtifactError for something else."""
    found = _load(segmenter)
    names = {_onnx_type(dtype): floats for floats, dtype in _FLOATS.items()}
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
        "flags_start": [spec.history], "flags_end": [2**31 - 1], "flags_axis": [1], "frames_axis": [0],
    }  # fmt: skip
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    kept = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *kept])
    for name, shape in spec.fed_shapes("words", "frames").items():
        dtype = _onnx_type("FLOAT" if name == "ranges" else "INT32")
        graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    graph.output.append(helper.make_tensor_value_info(DAMAGED, _onnx_type("INT32"), ("frames",)))
    known = helper.make_tensor_value_info(latent.name, _onnx_type(_FLOATS[floats]), ("frames", *spec.latent))
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


def one_file_network(api: TensorRt, builder: Builder, one: OneFile) -> Network:
    """The parsed network, its plugin registered. Give the builder's config `profile` for its inputs.

    Raises as `register_plugin`, and ArtifactError where the model does not parse or has other ends than it should.
    """
    register_plugin(api, one.spec, one.kernel)
    network = api.network(builder)
    parser = api.parser(network)
    if not parser.parse_from_file(str(one.model)):
        told = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise api.failed(f"cannot parse {one.model.name} with plugin {one.spec.name}{': ' if told else ''}{told}")
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    found = {tensor.name: tensor.dtype.name for tensor in inputs}
    made = sorted((tensor.dtype.name, tensor.name == DAMAGED) for tensor in outputs)
    expected = {name: "FLOAT" if name == "ranges" else "INT32" for name in FED}
    if found != expected or made != [("INT32", True), ("UINT8", False)]:
        raise ArtifactError(
            f"the network takes {found} and gives {made}, expected {expected}, labels as UINT8 and {DAMAGED} as INT32"
        )
    return network


def _onnx_type(name: str) -> int:
    from onnx import TensorProto

    return int(getattr(TensorProto, name))


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
    floats = [_onnx_type(name) for name in _FLOATS.values()]
    if len(inputs) != 1 or kinds[0] not in floats or len(inputs[0].type.tensor_type.shape.dim) != 4:
        listed = ", ".join(tensor.name for tensor in inputs) or "none"
        raise ArtifactError(f"a model with inputs {listed}, expected one latent (N, C, h, w) of floats: a segmenter's")
    latent: onnx.ValueInfoProto = inputs[0]
    return latent
