"""What TensorRT wants of an ONNX file beyond what ONNX Runtime takes: uint8 at the network's ends and nowhere else.

TensorRT takes uint8 as an input or output with a Cast right beside it; a Transpose of uint8 is refused. A bundle's
graphs permute frames as bytes, before the Cast and after it, so the two change places: a permutation and an elementwise
conversion commute, and every value stays what it was. That is checked by running both files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engine.backends import TensorSpec, open_backend
from ..errors import VerificationError, missing_extra


def cast_outside(model: Path, target: Path, source: TensorSpec, smallest: tuple[int, ...]) -> tuple[Path, int]:
    """Make the casts of uint8 a model's outermost nodes; returns (file to build, pairs of nodes that changed places).

    The file is `model` itself where nothing is to be done, else `target`, whose outputs are equal to the model's on
    random inputs: of the shape `smallest` and of one that is larger.
    source: dtype and rank of the input.
    Raises BackendMissingError without onnx or onnxruntime, VerificationError should an output differ.
    """
    try:
        import onnx
    except ImportError:
        raise missing_extra("onnx", "export") from None
    proto = onnx.load(model)
    moved = _swap(proto.graph)
    if not moved:
        return model, 0
    onnx.checker.check_model(proto)
    onnx.save(proto, target)
    rng = np.random.default_rng(0)
    batch, *sides = smallest
    larger = tuple(
        side if side == expected else 2 * side for side, expected in zip(sides, source.shape[1:], strict=True)
    )
    with open_backend(model, threads=1) as before, open_backend(target, threads=1) as after:
        for shape in (smallest, (batch + 1, *larger)):
            array = rng.integers(0, 256, shape).astype(source.dtype)
            if not np.array_equal(before.run(array), after.run(array)):
                raise VerificationError(f"{model.name} with its casts moved differs from what it was")
    return target, moved


def _swap(graph: Any) -> int:
    """Exchange Transpose and Cast wherever uint8 lies between them; returns how many pairs."""
    from onnx import TensorProto, helper

    bytes_in = {end.name for end in graph.input if end.type.tensor_type.elem_type == TensorProto.UINT8}
    ends = {end.name for end in graph.output}
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    replaced: dict[str, list[Any]] = {}  # a node's first output -> the nodes in its place
    moved = 0
    for node in graph.node:
        if node.op_type != "Transpose":
            continue
        (before,), (after,) = node.input, node.output
        after_nodes, cast = readers.get(after, []), made.get(before)
        if before in bytes_in and after not in ends and after_nodes and all(n.op_type == "Cast" for n in after_nodes):
            replaced[after] = []
            for index, reader in enumerate(after_nodes):
                name = f"{after}_cast{index}"
                first = helper.make_node("Cast", [before], [name])
                first.attribute.extend(reader.attribute)
                second = helper.make_node("Transpose", [name], list(reader.output))
                second.attribute.extend(node.attribute)
                replaced[after] += [first, second]
                replaced[reader.output[0]] = []
                moved += 1
        elif cast is not None and _makes_bytes(cast) and before not in ends and len(readers[before]) == 1:
            name = f"{before}_permuted"
            first = helper.make_node("Transpose", [cast.input[0]], [name])
            first.attribute.extend(node.attribute)
            second = helper.make_node("Cast", [name], [after])
            second.attribute.extend(cast.attribute)
            replaced[before], replaced[after] = [], [first, second]
            moved += 1
    nodes = [new for node in graph.node for new in replaced.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    known = {name for node in nodes for name in node.output}
    stale = [info for info in graph.value_info if info.name not in known]
    for info in stale:
        graph.value_info.remove(info)
    return moved


def _makes_bytes(node: Any) -> bool:
    from onnx import TensorProto

    return node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.UINT8 for a in node.attribute)
