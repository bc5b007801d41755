"""A tiny bundle whose models do arithmetic that NumPy can repeat by hand: no training, no weights, 4 files of a few kB.

| role | what it computes |
| --- | --- |
| compressor | latent = mean of each 8x8 block of each colour channel: (N, 3, H/8, W/8) |
| decompressor | frame = latent repeated 8x8, rounded half to even, clipped to 0..255 |
| segmenter | label = index of the largest latent channel (first on ties), repeated 8x8 |
| rgb_segmenter | label = index of the largest colour channel (first on ties) of each pixel |
| classifier | probabilities = softmax(mean of the latent over all positions @ WEIGHTS) |
| rgb_classifier | probabilities = softmax(mean of the frame over all pixels @ WEIGHTS) |

Codec: C = 3, stride 8, n = 8 bits, fixed range 0..255, so that a symbol is the rounded mean. Classes: red, green, blue;
those of the classifiers are in KINDS. Means of 64 bytes are exact in float32, so symbols and labels compare exactly.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from latentseg.bitstream import Scaling
from latentseg.engine.bundle import Bundle, ClassInfo, CodecSpec, write_bundle

STRIDE = 8
ROLES = ("compressor", "decompressor", "segmenter", "rgb_segmenter")
CLASSIFYING = ("compressor", "decompressor", "classifier", "rgb_classifier")
CLASSES = [ClassInfo("red", (255, 0, 0)), ClassInfo("green", (0, 255, 0)), ClassInfo("blue", (0, 0, 255))]
KINDS = [ClassInfo(name) for name in ("dusk", "grass", "sea", "fire", "snow", "night", "haze")]
WEIGHTS = np.array([[0, -2, -3, 6, 2, -4, 1], [0, 5, 1, 1, 2, -4, 1], [1, -2, 5, -1, 2, -4, 0]], np.float32) / 64
_OPSET = 18
_FRAMES, _LATENT = ["N", "H", "W", 3], ["N", 3, "h", "w"]
_UP = numpy_helper.from_array(np.array([1, 1, STRIDE, STRIDE], np.float32), "scales")
_NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def write_tiny_bundle(
    path: Path,
    roles: Sequence[str] = ROLES,
    *,
    name: str = "tiny",
    codec_seed: str = "tiny",
    centres: Sequence[float] = (),
    steps: tuple[float, float] = (1.0, 1.0),
    overwrite: bool = False,
) -> Bundle:
    """Write the tiny bundle to `path`; another `codec_seed` gives the same codec under another id.

    centres: those of a codec whose symbols are the nearest one's index, in place of the rounded mean. steps: those
    that the manifest says it was trained for.
    """
    codec = CodecSpec(
        name="tiny-mean",
        id=hashlib.sha256(codec_seed.encode()).digest(),
        channels=3,
        stride=STRIDE,
        bits=(len(centres) - 1).bit_length() if centres else 8,
        scaling=Scaling("codebook", centres=tuple(centres)) if centres else Scaling("fixed", 0.0, 255.0),
        steps=steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, tuple[Path, float, int]] = {}
        for role in roles:
            file = Path(folder) / f"{role}.onnx"
            onnx.save(_MODELS[role](), file)
            models[role] = (file, 1.0, 0)
        classes = KINDS if "classifier" in roles or "rgb_classifier" in roles else CLASSES
        return write_bundle(
            path, name, codec, models, classes, {}, {}, {}, "block means, for tests", overwrite=overwrite
        )


def block_means(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The compressor by hand: (N, H, W, 3) of any size -> (N, 3, ceil(H/8), ceil(W/8)) float32."""
    n, height, width, _ = frames.shape
    padded = np.pad(frames, ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")
    blocks = padded.reshape(n, padded.shape[1] // STRIDE, STRIDE, padded.shape[2] // STRIDE, STRIDE, 3)
    return blocks.astype(np.float64).mean(axis=(2, 4)).transpose(0, 3, 1, 2).astype(np.float32)


def symbols(frames: npt.NDArray[np.uint8], step: float = 1.0) -> npt.NDArray[np.uint8]:
    """The codec's symbols by hand: block means over the step, rounded half to even; there are 256 of them."""
    return np.rint(block_means(frames).astype(np.float64) / step).clip(0, 255).astype(np.uint8)


def labels(frames: npt.NDArray[np.uint8], step: float = 1.0) -> npt.NDArray[np.uint8]:
    """The compressed-domain segmenter by hand: (N, H, W, 3) -> (N, H, W) uint8."""
    small = symbols(frames, step).argmax(axis=1).astype(np.uint8)
    return small.repeat(STRIDE, axis=1).repeat(STRIDE, axis=2)[:, : frames.shape[1], : frames.shape[2]]


def probabilities(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Either classifier by hand: mean colours (N, 3) -> (N, classes)."""
    powers = np.exp(means @ WEIGHTS.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def frame_means(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What the RGB classifier takes the mean of, by hand: (N, H, W, 3) of any size, padded -> (N, 3)."""
    padded = np.pad(frames, ((0, 0), (0, -frames.shape[1] % 8), (0, -frames.shape[2] % 8), (0, 0)), mode="edge")
    return padded.astype(np.float64).mean((1, 2))


def _compressor() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["latent"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    return _model("compressor", nodes, ("frames", TensorProto.UINT8, _FRAMES), ("latent", TensorProto.FLOAT, _LATENT))


def _decompressor() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Resize", ["latent", "", "scales"], ["up"], **_NEAREST),
        helper.make_node("Round", ["up"], ["whole"]),
        helper.make_node("Clip", ["whole", "zero", "top"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["frames"], perm=[0, 2, 3, 1]),
    ]
    limits = [numpy_helper.from_array(np.float32(v), k) for k, v in (("zero", 0), ("top", 255))]
    source, result = ("latent", TensorProto.FLOAT, _LATENT), ("frames", TensorProto.UINT8, _FRAMES)
    return _model("decompressor", nodes, source, result, [_UP, *limits])


def _segmenter() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Resize", ["latent", "", "scales"], ["up"], **_NEAREST),
        helper.make_node("ArgMax", ["up"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8),
    ]
    source, result = ("latent", TensorProto.FLOAT, _LATENT), ("labels", TensorProto.UINT8, ["N", "H", "W"])
    return _model("segmenter", nodes, source, result, [_UP])


def _rgb_segmenter() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["float"], ["index"], axis=3, keepdims=0),
        helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8),
    ]
    source, result = ("frames", TensorProto.UINT8, _FRAMES), ("labels", TensorProto.UINT8, ["N", "H", "W"])
    return _model("rgb_segmenter", nodes, source, result)


def _classifier() -> onnx.ModelProto:
    return _to_probabilities("classifier", [], ("latent", TensorProto.FLOAT, _LATENT), "latent", [2, 3])


def _rgb_classifier() -> onnx.ModelProto:
    cast = helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT)
    return _to_probabilities("rgb_classifier", [cast], ("frames", TensorProto.UINT8, _FRAMES), "float", [1, 2])


def _to_probabilities(
    name: str, nodes: list[onnx.NodeProto], source: _Tensor, values: str, axes: list[int]
) -> onnx.ModelProto:
    nodes = [
        *nodes,
        helper.make_node("ReduceMean", [values, "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [numpy_helper.from_array(np.array(axes, np.int64), "axes"), numpy_helper.from_array(WEIGHTS, "weights")]
    return _model(name, nodes, source, ("probabilities", TensorProto.FLOAT, ["N", len(KINDS)]), constants)


_MODELS = {
    "compressor": _compressor,
    "decompressor": _decompressor,
    "segmenter": _segmenter,
    "rgb_segmenter": _rgb_segmenter,
    "classifier": _classifier,
    "rgb_classifier": _rgb_classifier,
}
_Tensor = tuple[str, int, list[int | str]]


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    source: _Tensor,
    result: _Tensor,
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(*t) for t in (source, result)]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model
