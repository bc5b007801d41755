"""The dual graph head against its formulas, written again in NumPy with loops where they are short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from latentseg.models.dualgraph import ChannelAffinity, DualGraph, DualGraphHead, NodeProjection  # noqa: E402

Array = Any  # float64 ndarrays; the formulas below are their own documentation


def shaken(module: Any) -> Any:
    """The module in eval mode, with every parameter and running statistic moved off its default."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                parameter.copy_(torch.randn_like(parameter) * 0.4)
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2.0)
    return module.double().eval()


def array(tensor: Any) -> Array:
    return tensor.detach().numpy()


def norm(bn: Any, x: Array) -> Array:
    """Batch norm in eval mode over axis 0 of x."""
    mean, var, weight, bias = (array(t) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    across = (slice(None),) + (None,) * (x.ndim - 1)
    return (x - mean[across]) / np.sqrt(var[across] + bn.eps) * weight[across] + bias[across]


def pointwise(conv: Any, x: Array) -> Array:
    """A 1x1 convolution of x [C,L]."""
    weight = array(conv.weight).reshape(conv.weight.shape[0], -1)
    bias = 0.0 if conv.bias is None else array(conv.bias)[:, None]
    return weight @ x + bias


def conv3(conv: Any, x: Array) -> Array:
    """A 3x3 convolution, padding 1, of x [C,h,w], any stride and groups."""
    weight, stride = array(conv.weight), conv.stride[0]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    out = np.zeros((weight.shape[0], height, width))
    per_group = weight.shape[0] // conv.groups
    for o in range(weight.shape[0]):
        group = slice(o // per_group * weight.shape[1], (o // per_group + 1) * weight.shape[1])
        for i in range(height):
            for j in range(width):
                patch = padded[group, i * stride : i * stride + 3, j * stride : j * stride + 3]
                out[o, i, j] = np.sum(patch * weight[o])
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def affinity(net: Any, x: Array) -> Array:
    shape, x = x.shape, x.reshape(x.shape[0], -1)
    k, v, q = pointwise(net.key, x), pointwise(net.value, x), pointwise(net.query, x)
    energy = q @ v.T
    a = np.exp(energy - energy.max(axis=1, keepdims=True))
    a /= a.sum(axis=1, keepdims=True)
    y = k.T @ a  # positions x channels
    y = norm(net.graph[1], pointwise(net.graph[0], y.T))
    return relu(norm(net.out[1], pointwise(net.out[0], y)) + x).reshape(shape)


def projection(net: Any, x: Array) -> Array:
    shape, x = x.shape, x.reshape(x.shape[0], -1)
    phi = norm(net.phi[1], pointwise(net.phi[0], x))
    theta = norm(net.theta[1], pointwise(net.theta[0], x))
    z = phi @ theta.T  # states x nodes
    mixed = norm(net.adjacency[1], pointwise(net.adjacency[0], z.T)).T  # nodes are the channels here
    z = z + mixed
    z = norm(net.state[1], pointwise(net.state[0], z))
    return relu(x + norm(net.out[1], pointwise(net.out[0], z @ theta))).reshape(shape)


def upsample(x: Array, height: int, width: int) -> Array:
    """Bilinear with aligned corners, of x [C,h,w]."""

    def axis(source: int, target: int) -> Array:
        matrix = np.zeros((target, source))
        for t in range(target):
            place = t * (source - 1) / (target - 1) if target > 1 else 0.0
            low = min(int(place), source - 1)
            high = min(low + 1, source - 1)
            matrix[t, low] += 1 - (place - low)
            matrix[t, high] += place - low
        return matrix

    return np.einsum("ai,bj,cij->cab", axis(x.shape[1], height), axis(x.shape[2], width), x)


def dual_graph(net: Any, x: Array) -> Array:
    coarse = x
    for conv, bn in zip(net.down[0::2], net.down[1::2], strict=True):
        coarse = norm(bn, conv3(conv, coarse))
    s = x * upsample(affinity(net.affinity, coarse), *x.shape[1:]) + x
    both = np.concatenate((s, projection(net.projection, x))).reshape(-1, x.shape[1] * x.shape[2])
    return norm(net.fuse[1], pointwise(net.fuse[0], both)).reshape(x.shape)


def head(net: Any, x: Array) -> Array:
    y = relu(norm(net.before[1], conv3(net.before[0], x)))
    y = dual_graph(net.graph, y)
    y = relu(norm(net.after[1], conv3(net.after[0], y)))
    y = relu(norm(net.classify[1], conv3(net.classify[0], np.concatenate((x, y)))))
    return pointwise(net.classify[3], y.reshape(y.shape[0], -1)).reshape(-1, *x.shape[1:])


SIZES = [(5, 7), (1, 1), (9, 2), (16, 17)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    ("net", "truth"),
    [
        (ChannelAffinity(8), affinity),
        (NodeProjection(8), projection),
        (DualGraph(8), dual_graph),
        (DualGraphHead(6, 5, width=8), head),
    ],
    ids=["affinity", "projection", "graph", "head"],
)
def test_formulas(net: Any, truth: Any, height: int, width: int) -> None:
    net = shaken(net)
    channels = 6 if isinstance(net, DualGraphHead) else 8
    x = np.random.default_rng(3).normal(size=(2, channels, height, width))
    with torch.no_grad():
        found = array(net(torch.from_numpy(x)))
    expected = np.stack([truth(net, sample) for sample in x])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_depthwise_layers_are_depthwise() -> None:
    down: Any = DualGraph(8).down
    assert [conv.groups for conv in down[0::2]] == [8, 8, 8]
