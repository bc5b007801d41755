"""Multiply-accumulates of a bundle's networks on one frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.manifest import CLASSIFYING_ROLES
from ..errors import ArtifactError, missing_extra

if TYPE_CHECKING:
    from ..engine.bundle import Bundle


def frame_macs(bundle: Bundle, roles: Sequence[str], size: tuple[int, int]) -> float:
    """MACs of convolutions and linear layers of `roles` on one frame of `size` = (height, width), padded as they do.

    A codec's and a segmenter's are the manifest's per pixel: those networks work at strides that divide the padded
    frame. A classifier strides further, rounding up, and ends in a layer that runs once a frame: its ONNX file is
    counted at this very size. Raises BackendMissingError where that needs a package that is not installed.
    """
    stride = bundle.codec.stride
    height, width = (-(-side // stride) * stride for side in size)
    total = 0.0
    for role in roles:
        if role in CLASSIFYING_ROLES:
            shape = (1, height, width, 3) if role.startswith("rgb") else (1, *bundle.latent_shape(height, width))
            total += onnx_macs(bundle.model_path(role), shape)
        else:
            total += bundle.macs(role, height, width)
    return total


@lru_cache(maxsize=64)
def onnx_macs(path: Path, shape: tuple[int, ...]) -> int:
    """MACs of an ONNX file's convolutions and matrix products on an input of `shape`."""
    try:
        import onnx
    except ImportError:
        raise missing_extra("onnx", "export") from None
    model = onnx.load(path)
    del model.graph.value_info[:]  # sizes that the exporter left free, in names of its own
    for found, wanted in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        found.dim_value = wanted
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        if node.op_type not in _COUNTED:
            continue
        names = (*node.input[:2], node.output[0])
        if not all(all(shapes.get(name, (0,))) for name in names):
            raise ArtifactError(f"{path.name}: no fixed shape at {node.op_type} '{node.name}' for an input of {shape}")
        total += _COUNTED[node.op_type](*(shapes[name] for name in names))
    return total


_Shape = tuple[int, ...]


def _convolution(_: _Shape, weight: _Shape, output: _Shape) -> int:
    return math.prod(output) * math.prod(weight[1:])


def _transposed(source: _Shape, weight: _Shape, _: _Shape) -> int:
    return math.prod(source) * math.prod(weight[1:])


def _product(left: _Shape, right: _Shape, output: _Shape) -> int:
    # Of Gemm(A, B), A (n, k) is never transposed by the exporters; a product's k is its last axis as well.
    return math.prod(output) * left[-1]


_COUNTED = {"Conv": _convolution, "ConvTranspose": _transposed, "Gemm": _product, "MatMul": _product}
