"""The fp32 ONNX graph that both precisions start from, and what in it must stay in float32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_SUMS = ("ReduceMean", "ReduceSum", "GlobalAveragePool")
SUM_REASON = "sums over every position of the frame, which grows with its size"
CHAIN_REASON = "on the way from such a sum to the convolution that scales it down"


def load(path: Path) -> Any:
    """A bundle's ONNX file with plain float32 weights, every node named, and no batch norm that is not folded."""
    import onnx

    model = onnx.load(path)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    _widen_weights(model.graph)
    # Inferred anew: the exporter's note of a 1-D convolution's length can be wrong, of which every run would warn.
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model)
    _fold_norms(model.graph)
    used = {name for node in model.graph.node for name in node.input}
    for weight in [w for w in model.graph.initializer if w.name not in used]:
        model.graph.initializer.remove(weight)
    onnx.checker.check_model(model)
    return model


def _widen_weights(graph: Any) -> None:
    """Weights that are stored as float16 behind a Cast become float32 weights; the values stay."""
    from onnx import TensorProto, numpy_helper

    weights = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT16}
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in weights and n.attribute[0].i == 1]
    for cast in casts:
        values = numpy_helper.to_array(weights[cast.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, cast.output[0]))
        graph.node.remove(cast)


def _fold_norms(graph: Any) -> None:
    """Each BatchNormalization becomes a product and a sum whose constants are computed in float64.

    Its variances do not survive fp16, which has 6e-8 as its smallest step; their quotients do.
    """
    from onnx import helper, numpy_helper

    weights = {w.name: w for w in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*graph.input, *graph.value_info]}
    nodes = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(name in weights for name in node.input[1:]):
            nodes.append(node)
            continue
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        gamma, beta, mean, variance = (
            numpy_helper.to_array(weights[name]).astype(np.float64).reshape([-1] + [1] * (ranks[node.input[0]] - 2))
            for name in node.input[1:]
        )
        factor = gamma / np.sqrt(variance + epsilon)
        product, names = f"{node.name}_scaled", [f"{node.name}_factor", f"{node.name}_shift"]
        for name, values in zip(names, (factor, beta - mean * factor), strict=True):
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        nodes.append(helper.make_node("Mul", [node.input[0], names[0]], [product], name=f"{node.name}_mul"))
        nodes.append(helper.make_node("Add", [product, names[1]], [node.output[0]], name=f"{node.name}_add"))
    if len(nodes) != len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)


def sums_over_positions(model: Any) -> dict[str, str]:
    """Nodes whose values grow with the frame's size, name to reason.

    A reduction over positions, which is one node; and a product of two activations (q v^T and A k of an attention,
    phi theta^T of a graph projection), with all that follows up to the next 2-D convolution, inclusive: its weights
    hold the batch norm that scales the sum down.
    """
    weights = {w.name: len(w.dims) for w in model.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {n.name: SUM_REASON for n in model.graph.node if n.op_type in _SUMS}
    queue = [n for n in model.graph.node if n.op_type == "MatMul" and not any(i in weights for i in n.input)]
    found |= {n.name: SUM_REASON for n in queue}
    seen = {n.name for n in queue}
    while queue:
        node = queue.pop()
        found.setdefault(node.name, CHAIN_REASON)
        if node.op_type == "Conv" and weights.get(node.input[1]) == 4:
            continue
        after = [
            n for name in node.output for n in readers.get(name, []) if n.name not in seen and n.op_type != "Shape"
        ]
        seen |= {n.name for n in after}
        queue += after
    return found


def first_convolutions(model: Any) -> list[str]:
    """The convolutions that read the input with no other one before them."""
    fresh = {end.name for end in model.graph.input}
    first = []
    for node in model.graph.node:
        if fresh.isdisjoint(node.input):
            continue
        if node.op_type == "Conv":
            first.append(node.name)
        elif node.op_type != "Shape":
            fresh |= set(node.output)
    return first


def element_types(model: Any) -> dict[str, int]:
    """Element type of every tensor, by name, as ONNX infers them."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    ends: Iterable[Any] = [*graph.input, *graph.output, *graph.value_info]
    return {v.name: v.type.tensor_type.elem_type for v in ends} | {w.name: w.data_type for w in graph.initializer}
