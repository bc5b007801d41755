"""The dual graph head of DGCNet (Zhang et al., BMVC 2019), with which Kakaiya et al. segment.

In the formulas x is [C, L] (C channels, L = h * w positions) and W are 1x1 convolutions, batch norm included unless
said otherwise.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv_bn(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ChannelAffinity(nn.Module):
    """The graph of the spatial branch: ReLU(x + W_out W_g (A^T k)) with A = softmax over the last axis of q v^T.

    k, v, q = W_k x, W_v x, W_q x with C/2 channels (bias, no batch norm), so that A is C/2 x C/2, channel by channel.
    [N,C,h,w] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.key = nn.Conv2d(channels, half, 1)
        self.value = nn.Conv2d(channels, half, 1)
        self.query = nn.Conv2d(channels, half, 1)
        self.graph = nn.Sequential(nn.Conv1d(half, half, 1, bias=False), nn.BatchNorm1d(half))
        self.out = nn.Sequential(nn.Conv2d(half, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        key, value, query = self.key(x), self.value(x).flatten(2), self.query(x).flatten(2)
        affinity = torch.softmax(query @ value.transpose(1, 2), dim=-1)
        mixed = self.graph(affinity.transpose(1, 2) @ key.flatten(2))
        return F.relu(self.out(mixed.reshape(key.shape)) + x)


class NodeProjection(nn.Module):
    """The branch in feature space: ReLU(x + W_out (W_s (Z + W_a Z) theta)) with Z = phi theta^T.

    phi = W_phi x has C/2 channels, theta = W_theta x has C/4: positions are projected to C/4 nodes of C/2 features.
    W_a mixes the nodes (adjacency), W_s the features (state); theta takes the nodes back. [N,C,h,w] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        states, nodes = channels // 2, channels // 4
        self.phi = _conv_bn(channels, states, 1)
        self.theta = _conv_bn(channels, nodes, 1)
        self.adjacency = nn.Sequential(nn.Conv1d(nodes, nodes, 1, bias=False), nn.BatchNorm1d(nodes))
        self.state = nn.Sequential(nn.Conv1d(states, states, 1, bias=False), nn.BatchNorm1d(states))
        self.out = _conv_bn(states, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        phi, theta = self.phi(x), self.theta(x).flatten(2)
        nodes = phi.flatten(2) @ theta.transpose(1, 2)
        nodes = nodes + self.adjacency(nodes.transpose(1, 2)).transpose(1, 2)
        back = self.state(nodes) @ theta
        return F.relu(x + self.out(back.reshape(phi.shape)))


class DualGraph(nn.Module):
    """Both branches on x [N,C,h,w]: W (x * up + x, g), to the same shape.

    up: the spatial branch, on a grid 8 times coarser (three depthwise 3x3 convolutions of stride 2, each with batch
    norm), upsampled bilinearly to x's size; g: the node projection.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for _ in range(3):
            conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
            down += [conv, nn.BatchNorm2d(channels)]
        self.down = nn.Sequential(*down)
        self.affinity = ChannelAffinity(channels)
        self.projection = NodeProjection(channels)
        self.fuse = _conv_bn(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.affinity(self.down(x))
        up = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=True)
        return cast(Tensor, self.fuse(torch.cat((x * up + x, self.projection(x)), dim=1)))


class DualGraphHead(nn.Module):
    """Backbone features [N,inputs,h,w] -> logits [N,classes,h,w].

    3x3 to `width` channels, the dual graph, 3x3, then 3x3 on the features and that together, 1x1 to the classes (with
    bias). The paper's width is 512.
    """

    def __init__(self, inputs: int, classes: int, width: int = 512) -> None:
        super().__init__()
        self.before = nn.Sequential(*_conv_bn(inputs, width, 3), nn.ReLU())
        self.graph = DualGraph(width)
        self.after = nn.Sequential(*_conv_bn(width, width, 3), nn.ReLU())
        self.classify = nn.Sequential(
            *_conv_bn(inputs + width, width, 3), nn.ReLU(), nn.Conv2d(width, classes, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.after(self.graph(self.before(x)))
        return cast(Tensor, self.classify(torch.cat((x, y), dim=1)))
