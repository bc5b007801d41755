"""fp16: weights, constants and activations as float16, and so is a latent segmenter's input; uint8 ends stay.

What stays in float32 is listed with its reason, and nothing else does. ONNX Runtime's own converter is not used: it
rounds to fp16 and back between two nodes that are to stay in float32, and where two of them read one tensor its file
is not valid ONNX (1.31.1).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import VerificationError
from . import graph
from .inputs import Reader

MAX_HALF = 65504.0
MAX_ACTIVATION = MAX_HALF / 4  # what other frames may reach more than those that were looked at
RANGE_FRAMES = 8
RAN_AS = (
    "float32 on ONNX Runtime's CPU with every value rounded to fp16 between the nodes; run as it is, that runtime "
    "would drop the rounding between two nodes, and hide an overflow"
)


def kept_float(model: Any) -> dict[str, str]:
    """The nodes of a float32 model that stay in float32, name to reason."""
    return graph.sums_over_positions(model)


def to_half(model: Any) -> Any:
    """The fp16 form of a float32 model (from `graph.load`); the model given is left as it is.

    Every float32 tensor becomes float16, but those that a node of `kept_float` makes or holds as a weight; one Cast
    stands wherever the two meet. Raises VerificationError for a weight beyond fp16's range, or should a node compute in
    float32 that is on no list.
    """
    import onnx
    from onnx import TensorProto

    kept = kept_float(model)
    types = graph.element_types(model)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    wide = {name for node in made.graph.node if node.name in kept for name in node.output if name in floats}
    weights = {w.name for w in made.graph.initializer if w.name in floats}
    wide_weights: set[str] = set()
    half_weights: set[str] = set()
    nodes: list[Any] = []
    cast: dict[str, str] = {}
    for node in made.graph.node:
        for i, name in enumerate(node.input):
            # Resize's roi and scales are float32 by the operator's own definition.
            to_wide = node.name in kept or (node.op_type == "Resize" and i in (1, 2))
            if name in weights:
                (wide_weights if to_wide else half_weights).add(name)
                if to_wide:
                    node.input[i] = f"{name}_float"
            elif name in floats and (name in wide) != to_wide:
                if name not in cast:
                    cast[name] = f"{name}_{'float' if to_wide else 'half'}"
                    nodes.append(_cast(name, cast[name], TensorProto.FLOAT if to_wide else TensorProto.FLOAT16))
                node.input[i] = cast[name]
        if node.name not in kept:
            _halve_constants(node)
        nodes.append(node)
    _replace_nodes(made.graph, nodes)
    _halve_weights(made.graph, half_weights, wide_weights)
    for end in (*made.graph.input, *made.graph.output):
        if end.type.tensor_type.elem_type == TensorProto.FLOAT:
            end.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(made)
    strangers = sorted(float_nodes(made) - set(kept))
    if strangers:
        raise VerificationError(f"{len(strangers)} node(s) stayed in float32 without a reason: {', '.join(strangers)}")
    return made


def _halve_constants(node: Any) -> None:
    """A Cast to float32 goes to float16 instead, and a Constant of float32 becomes one of float16."""
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if node.op_type in {"Constant", "ConstantOfShape"} and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(_to_half(numpy_helper.to_array(attribute.t), node.name)))


def _halve_weights(onnx_graph: Any, half_weights: set[str], wide_weights: set[str]) -> None:
    """Weights in the kinds that are used: float16 under their own name, float32 under NAME_float."""
    from onnx import TensorProto, numpy_helper

    for weight in [w for w in onnx_graph.initializer if w.data_type == TensorProto.FLOAT]:
        name, values = weight.name, numpy_helper.to_array(weight)
        onnx_graph.initializer.remove(weight)
        if name in half_weights:
            onnx_graph.initializer.append(numpy_helper.from_array(_to_half(values, name), name))
        if name in wide_weights:
            onnx_graph.initializer.append(numpy_helper.from_array(values, f"{name}_float"))


def _to_half(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float16]:
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= MAX_HALF:
        raise VerificationError(f"weight {name} holds {largest:g}, fp16 ends at {MAX_HALF:g}")
    return values.astype(np.float16)


def _replace_nodes(onnx_graph: Any, nodes: Sequence[Any]) -> None:
    import onnx

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del onnx_graph.node[:]
    onnx_graph.node.extend(copies)


def float_nodes(model: Any) -> set[str]:
    """Names of the nodes that compute in float32; casts do not compute."""
    from onnx import TensorProto

    types = graph.element_types(model)
    return {
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and any(types[name] == TensorProto.FLOAT for name in node.output)
    }


def rounded_twin(model: Any) -> Any:
    """A float32 model that computes what an fp16 one does on hardware that accumulates in float32.

    Every fp16 tensor is rounded to fp16 where it is made, and read back as float32. Its ends are the fp16 model's.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    types = graph.element_types(model)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.value_info[:]
    outputs = {end.name for end in twin.graph.output}
    wide = {name: f"{name}_wide" for name, kind in types.items() if kind == TensorProto.FLOAT16}
    nodes = []
    for weight in twin.graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, wide[weight.name]))
    for end in twin.graph.input:
        if end.name in wide:
            nodes.append(_cast(end.name, wide[end.name], TensorProto.FLOAT))
    for node in twin.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
            node.attribute[0].i = TensorProto.FLOAT
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.t.data_type == TensorProto.FLOAT16:
                    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
        halves = [(i, name) for i, name in enumerate(node.output) if name in wide]
        nodes.append(node)
        for i, name in halves:
            node.output[i] = f"{name}_exact"
            nodes.append(_cast(f"{name}_exact", name, TensorProto.FLOAT16))
            if name not in outputs:
                nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
    _replace_nodes(twin.graph, nodes)
    onnx.checker.check_model(twin)
    return twin


def _cast(source: str, target: str, kind: int) -> Any:
    from onnx import helper

    return helper.make_node("Cast", [source], [target], name=f"{source}_to_{target}", to=kind)


def check_range(
    source: Path, model: Any, inputs: Sequence[npt.NDArray[Any]], kept: set[str]
) -> dict[str, dict[str, Any]]:
    """The largest activation that fp16 has to hold, on the first frames; float32 nodes of `kept` left out.

    Raises VerificationError where it is above MAX_ACTIVATION, or not finite.
    """
    import onnx
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / source.name
        onnx.save(model, plain)
        calibrater = MinMaxCalibrater(plain, augmented_model_path=str(Path(folder) / "ranges.onnx"))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        name = model.graph.input[0].name
        calibrater.collect_data(Reader(name, inputs[:RANGE_FRAMES]))
        ranges = calibrater.compute_data()
    exempt = {name for node in model.graph.node if node.name in kept for name in node.output}
    largest, where = 0.0, "none"
    for tensor, data in ranges.items():
        reached = float(np.abs(np.concatenate([np.ravel(end) for end in data.range_value])).max())
        if tensor not in exempt and not reached <= largest:
            largest, where = reached, tensor
        if not np.isfinite(largest):
            break  # nothing is above NaN, so that what comes next would replace it
    if not largest <= MAX_ACTIVATION:
        raise VerificationError(
            f"activation {where} reaches {largest:g} on real frames, expected at most {MAX_ACTIVATION:g}: "
            f"fp16 ends at {MAX_HALF:g}"
        )
    return {"largest_activation": {"tensor": where, "value": largest}}
