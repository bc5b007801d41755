"""Torch networks to ONNX files, opset and interfaces pinned, batch and size dynamic."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import missing_extra
from ..models.complexity import count
from .graphs import CompressorGraph, DecompressorGraph, LabelsGraph, ProbabilitiesGraph

OPSET = 18
_OUTPUTS = {
    "compressor": "latent", "decompressor": "frames", "segmenter": "labels", "rgb_segmenter": "labels",
    "classifier": "probabilities", "rgb_classifier": "probabilities",
}  # fmt: skip
MAX_BATCH, MAX_SIDE = 256, 8192  # bounds of the dynamic dimensions; the largest frame side in pixels


@dataclass(frozen=True)
class Exported:
    """One exported model: its file, the torch graph it must agree with, and its cost."""

    role: str
    path: Path
    graph: nn.Module
    channels: int
    stride: int
    macs_per_pixel: float
    parameters: int

    def example(self, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
        """An input of this model for frames of `height` x `width` (multiples of the stride)."""
        return example_input(self.role, batch, height, width, self.channels, self.stride, seed)


def example_input(role: str, batch: int, height: int, width: int, channels: int, stride: int, seed: int) -> Tensor:
    """Random frames uint8 (N, H, W, 3), or a random latent float32 (N, C, H/s, W/s), as the role wants it."""
    generator = torch.Generator().manual_seed(seed)
    if takes_frames(role):
        return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    return torch.randn(batch, channels, height // stride, width // stride, generator=generator)


def takes_frames(role: str) -> bool:
    """Whether a role's input is frames; it is a latent otherwise."""
    return role in {"compressor", "rgb_segmenter", "rgb_classifier"}


def dynamic_dims(role: str, stride: int) -> dict[int, Any]:
    """The free dimensions of a role's input, by axis: batch and size, frames' in multiples of the stride."""
    n = torch.export.Dim("n", min=1, max=MAX_BATCH)
    h, w = (torch.export.Dim(name, min=1, max=MAX_SIDE // stride) for name in ("h", "w"))
    return {0: n, 1: stride * h, 2: stride * w} if takes_frames(role) else {0: n, 2: h, 3: w}


def codec_graphs(codec: nn.Module) -> dict[str, nn.Module]:
    """The two graphs of a codec by role."""
    return {"compressor": CompressorGraph(codec).eval(), "decompressor": DecompressorGraph(codec).eval()}


def segmenter_graph(segmenter: nn.Module, rgb: bool) -> nn.Module:
    """The label graph of a segmenter."""
    return LabelsGraph(segmenter, rgb).eval()


def classifier_graph(classifier: nn.Module, rgb: bool) -> nn.Module:
    """The probability graph of a classifier."""
    return ProbabilitiesGraph(classifier, rgb).eval()


def export_role(role: str, graph: nn.Module, path: Path, channels: int, stride: int) -> Exported:
    """Write one role's ONNX file.

    channels, stride: of the codec (a latent has `channels` channels at 1/`stride`; frames are multiples of `stride`).
    The file declares batch N and size dynamic; its weights are inside, so that it is one file.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from None
    frames = takes_frames(role)
    dims = dynamic_dims(role, stride)
    example = example_input(role, 2, 6 * stride, 8 * stride, channels, stride, 0)
    with _quiet():
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=["frames" if frames else "latent"],
            output_names=[_OUTPUTS[role]],
            dynamic_shapes=(dims,),
            external_data=False,
            verbose=False,
        )
    _strip(path)
    # Counted on a size that every network divides, with shapes alone (no arithmetic is done on the meta device).
    side = 32 * stride
    shape = (1, 3, side, side) if frames else (1, channels, side // stride, side // stride)
    cost = count(_network(graph), shape)
    return Exported(role, path, graph, channels, stride, cost.macs / side**2, cost.parameters)


def _strip(path: Path) -> None:
    """Drop what the exporter notes about its own run: stack traces, which name this machine's folders, and scopes."""
    import onnx

    model = onnx.load(path)
    holders = [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]
    for holder in [*holders, *model.graph.input, *model.graph.output]:
        del holder.metadata_props[:]
        holder.doc_string = ""
    onnx.save(model, path)


def halve_weights(path: Path) -> None:
    """Store the large float32 weights of an ONNX file as float16, each behind a Cast back to float32.

    The file is half as large and computes as before: runtimes fold the casts when they load it. The weights are rounded
    to 11 bits of mantissa, which verification against the unrounded torch network must find harmless.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    casts = []
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or np.prod(initializer.dims) < 1024:
            continue
        name = initializer.name
        half = numpy_helper.to_array(initializer).astype(np.float16)
        initializer.CopyFrom(numpy_helper.from_array(half, name + "_fp16"))
        casts.append(helper.make_node("Cast", [name + "_fp16"], [name], name=name + "_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _network(graph: nn.Module) -> nn.Module:
    for name in ("compressor", "decompressor", "segmenter", "classifier"):
        if hasattr(graph, name):
            return graph.get_submodule(name)
    raise AssertionError(f"{type(graph).__name__} is not one of the deployed graphs")


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Silence the exporter's chatter about packages that this project does not use; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
