"""Parameters and multiply-accumulates of a network, counted while it runs on meta tensors: full sizes cost nothing.

Two counts. `macs` are those of convolutions and linear layers. `table_rule` is the count behind Table I of Kakaiya et
al., where it is called "Flops" (the rule of ptflops 0.6.9): a convolution is its MACs plus 1 an output element if it
has a bias; batch norm 2 an element; a ReLU module 1 an element; max pooling 1 an input element; functional
operations (matrix products, softmax, functional ReLU, interpolation, clamp) and pixel shuffle are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class Complexity:
    """What one forward pass takes: used parameters, MACs, and the count by the rule of Table I."""

    parameters: int
    macs: int
    table_rule: int


def count(module: nn.Module, input_shape: tuple[int, ...], *, training: bool = False) -> Complexity:
    """Count one forward pass of `module` on a float32 input of `input_shape`, batch axis included.

    `parameters` are those of the submodules that take part: what only training uses (an auxiliary head) counts with
    `training` alone, and a layer that is never called does not count. Every call of a shared layer counts its cost.
    The module itself is left as it was, on any device; its forward must run on meta tensors.
    """
    counter = _Counter()
    modes = {part: part.training for part in module.modules()}
    handles = [part.register_forward_hook(counter) for part in modes]
    state = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    module.train(training)
    try:
        with torch.no_grad():
            torch.func.functional_call(module, state, (torch.empty(input_shape, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return Complexity(sum(counter.parameters.values()), counter.macs, counter.macs + counter.extra)


class _Counter:
    """The forward hook: one call for every call of a submodule."""

    def __init__(self) -> None:
        self.parameters: dict[int, int] = {}
        self.macs = 0
        self.extra = 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # Keyed by the tensor, so that a weight which two layers share counts once.
        self.parameters.update((id(parameter), parameter.numel()) for parameter in module.parameters(recurse=False))
        if isinstance(module, _ConvNd | nn.Linear):
            weight: Tensor = module.weight
            if isinstance(module, _ConvTransposeNd):
                self.macs += inputs[0].numel() * weight[0].numel()
            else:
                self.macs += output.numel() * weight[0].numel()
            self.extra += output.numel() if module.bias is not None else 0
        elif isinstance(module, _BatchNorm):
            self.extra += 2 * output.numel()
        elif isinstance(module, nn.ReLU):
            self.extra += output.numel()
        elif isinstance(module, nn.MaxPool2d):
            self.extra += inputs[0].numel()
