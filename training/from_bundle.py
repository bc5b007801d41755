"""A bundle's compact networks as torch modules again, which compute what its ONNX files compute.

Convolutions are found by their order in the file, not by name: the exporter merges equal weights and drops biases of
zero. The batch norms behind them are folded into them, so that the modules' own only add a bias; see `restore`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..bitstream import Scaling
from ..engine.bundle import Bundle
from ..engine.roles import Compressor, Decompressor, RgbSegmenter, Segmenter
from ..errors import ArtifactError, missing_extra
from ..models import registry
from .augment import to_float

CODEC = "compact-codec"
# The segmenters that can be read, by role; of each, how many convolutions lie in front of its trunk.
ENTRIES = {"segmenter": {"compact-unpacked": 4, "compact-latent": 2}, "rgb_segmenter": {"compact-rgb": 3}}
_MOST_DIFFERING = 0.01  # of symbols, 8-bit values and labels: far more than rounding costs, far less than an error
_Pairs = list[tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True)
class Found:
    """A network of a bundle: in evaluation mode, with its name in the registry and the options that it has there."""

    module: Any  # of nn.Module, with what its kind adds to it
    network: str
    options: dict[str, Any]


@dataclass(frozen=True)
class _Graph:
    """An ONNX file's convolutions (weight, bias or None, dilation) in their order, float32, and what else it learned.

    norm: running mean and variance of the batch norm of a segmenter's input, which is not folded. gain: of a codec's
    latent, (C, 1, 1).
    """

    convolutions: list[tuple[Tensor, Tensor | None, int]]
    norm: tuple[Tensor, Tensor] | None
    gain: Tensor | None


def networks_of(bundle: Bundle) -> dict[str, Found]:
    """The codec of a bundle, with a fresh rate model, as "codec", and its segmenters by role.

    Raises ArtifactError where a network is not a compact one, or was not exported as ours are, and BackendMissingError
    without onnx.
    """
    noted = bundle.manifest.get("training", {})
    parts: dict[str, Any] = {"codec": bundle.codec.name}
    for role in bundle.roles:
        if role not in {"compressor", "decompressor"}:
            parts[role] = noted[role].get("network") if isinstance(noted.get(role), Mapping) else None
    for role, network in parts.items():
        known = {"codec": [CODEC], **ENTRIES}.get(role, [])
        if network not in known:
            raise ArtifactError(
                f"bundle '{bundle.name}': its {role} is {network or 'of no network that the manifest notes'}, expected "
                f"{' or '.join(known) or 'a bundle of segmenters'}",
                hint="only the compact codec and the compact segmenters can be restored; go on from the runs instead",
            )
    codec = _codec(bundle)
    return {"codec": codec, **{r: _segmenter(bundle, r, network) for r, network in parts.items() if r != "codec"}}


def normalised(module: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """A compact segmenter's convolutions whose batch norms are folded in a bundle, each with its own."""
    found = pairwise(_layers(module))
    return [(a, b) for a, b in found if isinstance(a, nn.Conv2d) and a.bias is None and isinstance(b, nn.BatchNorm2d)]


@torch.no_grad()
def check_same(bundle: Bundle, networks: Mapping[str, Found], image: NDArray[np.uint8]) -> None:
    """Raise ArtifactError unless the networks make the same of an image, uint8 (H, W, 3), as the bundle's files do.

    Raises BackendMissingError without ONNX Runtime. H and W: at least the codec's stride.
    """
    height, width = size = tuple(side // bundle.codec.stride * bundle.codec.stride for side in image.shape[:2])
    frame = image[None, :height, :width]
    x, codec = to_float(frame[0])[None], networks["codec"].module
    with Compressor(bundle) as compressor, Decompressor(bundle) as decompressor:
        z = codec.quantised(torch.from_numpy(compressor.latents(frame)))
        decoded = decompressor.frames(z.numpy(), size)
    values = (codec.decompress(z) * 255.0 + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
    pairs = {"compressor": (codec.quantised(codec.compress(x)), z), "decompressor": (values, torch.from_numpy(decoded))}
    if "segmenter" in networks:
        with Segmenter(bundle) as segmenter:
            labels = segmenter.labels(z.numpy(), size)
        pairs["segmenter"] = _labels(networks["segmenter"].module(z), size), torch.from_numpy(labels)
    if "rgb_segmenter" in networks:
        with RgbSegmenter(bundle) as rgb_segmenter:
            labels = rgb_segmenter.labels(frame)
        pairs["rgb_segmenter"] = _labels(networks["rgb_segmenter"].module(x), size), torch.from_numpy(labels)
    for role, (found, expected) in pairs.items():
        share = float((found != expected).float().mean())
        if share > _MOST_DIFFERING:
            raise _other(
                bundle, role, f"{share:.1%} other values once it is restored", f"at most {_MOST_DIFFERING:.0%}"
            )


def _labels(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear").argmax(1).to(torch.uint8)


def _read(bundle: Bundle, role: str, others: int) -> tuple[_Graph, int]:
    """A role's file, and how many units of two convolutions it has beside `others`."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise missing_extra("onnx", "export") from None
    graph = onnx.load(bundle.model_path(role)).graph
    values = {i.name: torch.from_numpy(np.array(numpy_helper.to_array(i))) for i in graph.initializer}
    convolutions: list[tuple[Tensor, Tensor | None, int]] = []
    norms, gains = [], []
    for node in graph.node:
        known = [values.get(name) for name in node.input]
        first, second = (*known, None, None)[:2]
        if node.op_type == "Cast" and first is not None:  # of weights that are stored as float16
            values[node.output[0]] = first.float()
        elif node.op_type == "Conv" and second is not None:
            dilation = next((int(a.ints[0]) for a in node.attribute if a.name == "dilations"), 1)
            convolutions.append((second, (*known, None)[2], dilation))
        elif node.op_type == "BatchNormalization" and known[3] is not None and known[4] is not None:
            norms.append((known[3], known[4]))
        elif node.op_type == "Mul":
            gains += [value for value in known if value is not None and value.ndim == 3]
    units, odd = divmod(len(convolutions) - others, 2)
    rest, wanted = (gains, "gain") if role in {"compressor", "decompressor"} else (norms, "batch norm")
    if odd or units < 0 or len(rest) != 1:
        found = f"{len(convolutions)} convolutions and {len(rest)} {wanted}(s)"
        raise _other(bundle, role, found, f"{others}, two a unit, and 1 {wanted}")
    return _Graph(convolutions, norms[0] if norms else None, gains[0] if gains else None), units


def _codec(bundle: Bundle) -> Found:
    roles, spec = ("compressor", "decompressor"), bundle.codec
    (encoder, encoder_units), (decoder, decoder_units) = (_read(bundle, role, others=3) for role in roles)
    options = {
        "channels": spec.channels, "width": len(encoder.convolutions[0][0]), "bits": spec.bits,
        "encoder_units": encoder_units, "decoder_units": decoder_units,
    }  # fmt: skip
    options = _chosen(CODEC, options)
    codec: Any = registry.create(CODEC, **options).eval()
    if (codec.stride, Scaling(*codec.scaling)) != (spec.stride, spec.scaling):
        expected = f"{codec.stride} and {Scaling(*codec.scaling)}"
        raise _other(bundle, "codec", f"stride {spec.stride} and {spec.scaling}", expected)
    for role, graph in zip(roles, (encoder, decoder), strict=True):
        part: Any = codec.get_submodule(role)
        assert graph.gain is not None
        pairs: _Pairs = [(part.gain.log_tenth, graph.gain.log() / 10.0)]
        # The linear map is made first and computed last.
        first, *others = (module for module in part.modules() if isinstance(module, nn.Conv2d))
        for own, (weight, bias, _) in zip([*others, first], graph.convolutions, strict=True):
            pairs += [(own.weight, weight), (own.bias, bias)]
        _fill(bundle, role, pairs)
    return Found(codec, CODEC, options)


def _segmenter(bundle: Bundle, role: str, network: str) -> Found:
    entry = ENTRIES[role][network]
    graph, _ = _read(bundle, role, others=entry + 3)
    shapes = [weight.shape for weight, _, _ in graph.convolutions]
    classes, width = len(bundle.classes), shapes[-2][0]
    found = {
        "classes": classes, "width": width, "detail": math.isqrt(shapes[-1][0] // classes),
        # Behind the blocks come the global branch, the fusing convolution and the classifier.
        "dilations": tuple(dilation for _, _, dilation in graph.convolutions[entry:-3:2]),
        "channels": bundle.codec.channels, "stride_in": bundle.codec.stride,
        "root": 0 if shapes[1][0] == 7 * width // 32 else shapes[1][0],
    }  # fmt: skip
    known = registry.open_options(network)
    options = _chosen(network, {k: v for k, v in found.items() if k in known}, noted=("classes", "channels"))
    module = registry.create(network, **options).eval()
    layers = _layers(module)
    (free,) = (layer for layer in layers if isinstance(layer, nn.BatchNorm2d) and not layer.affine)
    assert graph.norm is not None
    pairs: _Pairs = [(free.running_mean, graph.norm[0]), (free.running_var, graph.norm[1])]
    norms = dict(normalised(module))
    convolutions = (layer for layer in layers if isinstance(layer, nn.Conv2d))
    for own, (weight, bias, _) in zip(convolutions, graph.convolutions, strict=True):
        norm = norms.get(own)
        pairs += [(own.weight, weight), (own.bias if norm is None else norm.bias, bias)]
        if norm is not None:
            norm.weight.data.fill_(math.sqrt(1.0 + norm.eps))  # undoes the division by a fresh norm's deviation
    _fill(bundle, role, pairs)
    return Found(module, network, options)


def _layers(module: nn.Module) -> list[nn.Conv2d | nn.BatchNorm2d]:
    """In the order in which they are computed; the segmenters make them in that order."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]


def _chosen(network: str, options: dict[str, Any], noted: Sequence[str] = ()) -> dict[str, Any]:
    """Options as a run of the network has them: those in `noted`, and those that are not the network's own."""
    defaults = registry.open_options(network)
    return {key: value for key, value in options.items() if key in noted or value != defaults[key]}


def _fill(bundle: Bundle, role: str, pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
    """Copy what was found into a network's own tensors, by pairs of (own, found); zeros where nothing was."""
    for own, found in pairs:
        assert own is not None
        if found is not None and own.shape != found.shape:
            raise _other(bundle, role, f"weights of shape {list(found.shape)}", f"{list(own.shape)}")
        own.data.copy_(torch.zeros_like(own) if found is None else found)


def _other(bundle: Bundle, role: str, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"bundle '{bundle.name}': its {role} has {found}, expected {expected}",
        hint="it was not exported as this version exports; export it again from its runs",
    )
