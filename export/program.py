"""Torch networks to exported programs (.pt2), beside the ONNX files: what `--backend torch` compiles for a GPU.

A program has the interface of the role's ONNX file: the same dtypes, batch and size dynamic within the same bounds, the
weights inside. It is kept in float32, and free of anything that names the machine that exported it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.backends import open_backend
from ..errors import VerificationError
from .onnx import Exported, dynamic_dims, example_input, takes_frames

_ASSERTIONS = (torch.ops.aten._assert_scalar.default, torch.ops.aten._assert_tensor_metadata.default)


class _Frames(nn.Module):
    """A deployed graph whose argument is called what the ONNX file calls it; the program takes the name over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        output: Tensor = self.network(frames)
        return output


class _Latent(_Frames):
    def forward(self, latent: Tensor) -> Tensor:
        output: Tensor = self.network(latent)
        return output


def write_program(graph: nn.Module, path: Path, role: str, channels: int, stride: int) -> Path:
    """Write one role's exported program to `path`, which must end in .pt2; returns `path`.

    graph: a deployed graph (`graphs.py`) on the CPU, in eval mode. channels, stride: of the codec, as in `export_role`.
    The program is functional ATen without autograd: what traces of training it had (autocast regions, in-place
    operators) would tie it to a device or keep it from being compiled.
    """
    # Only its sizes are looked at. They are large enough to stay above 1 at the end of a network that divides by 32.
    example = example_input(role, 2, 68 * stride, 76 * stride, channels, stride, 0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.export.export(
            (_Frames if takes_frames(role) else _Latent)(graph).eval(),
            (example,),
            dynamic_shapes=(dynamic_dims(role, stride),),
            prefer_deferred_runtime_asserts_over_guards=True,
        ).run_decompositions({})
        _strip(program)
        torch.export.save(program, path)
    return path


def _strip(program: Any) -> None:
    """Drop what torch notes about the tracing, and is not the network.

    Stack traces, which name folders; modules' names; the example; and assertions. These repeat what tracing supposed,
    above all that no size but the batch is 1, and name the device that it ran on. Where a supposition does matter,
    `verify_program` finds it at the smallest frame.
    """
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        else:
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    program.example_inputs = None


def verify_program(model: Exported, path: Path, shapes: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Run the program at `path` and the torch graph of `model` on noise at every shape; returns what was found.

    shapes: (batch, height, width) in pixels, multiples of the stride. Both run here, uncompiled, the same operators
    on the same CPU, so that they must agree bit for bit. Raises VerificationError where they do not.
    """
    with open_backend(path, "torch", provider="cpu") as runtime:
        for batch, height, width in shapes:
            x = model.example(batch, height, width, seed=height + width)
            with torch.no_grad():
                expected = model.graph(x).numpy()
            actual = runtime.run(x.numpy())
            if actual.shape != expected.shape or actual.dtype != expected.dtype or not np.array_equal(actual, expected):
                raise VerificationError(
                    f"the program of the {model.role} at {batch}x{height}x{width}: found {actual.dtype} "
                    f"{actual.shape} that differs from the network's {expected.dtype} {expected.shape}"
                )
    return {"torch": torch.__version__, "shapes": [list(shape) for shape in shapes], "equal": "bit for bit"}
