"""int8: quantise/dequantise pairs around the convolutions, from a calibration on what the segmenter truly receives.

ONNX Runtime's quantize_static writes them: signed and symmetric (zero point 0) for weights and activations alike, one
scale for each output channel of a weight, the bias in float32. That is what TensorRT takes; ONNX Runtime fuses each
convolution with its pairs into one integer kernel.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ...errors import InputError, missing_extra
from . import graph
from .inputs import Reader

# By measurement on CamVid (docs/precision.md): one value in ten thousand of a tensor is clipped; these outliers would
# else set the step of all others.
PERCENTILE = 99.99
METHOD = f"percentile {PERCENTILE:g} of a tensor's magnitudes; weights by their largest value, channel by channel"
RAN_AS = "the file itself on ONNX Runtime's CPU"
FIRST_REASON = "reads the input, whose channels differ in range; it has one or two per cent of the arithmetic"
_CHUNK = 4  # frames whose activations are in memory at once


def kept_float(model: Any) -> dict[str, str]:
    """The convolutions that are not quantised, name to reason."""
    convolutions = {n.name for n in model.graph.node if n.op_type == "Conv"}
    sums = {name: reason for name, reason in graph.sums_over_positions(model).items() if name in convolutions}
    return {**dict.fromkeys(graph.first_convolutions(model), FIRST_REASON), **sums}


def to_int8(
    model: Any, path: Path, inputs: Sequence[npt.NDArray[Any]], kept: set[str], step: Callable[[], None]
) -> int:
    """Write the int8 form of a float32 model (from `graph.load`) to `path`; returns how many inputs it was fitted to.

    inputs: what to calibrate on, of one shape.  kept: convolutions that stay in float32.  step: called once an input.
    Raises InputError where the inputs differ in shape.
    """
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    except ImportError as error:
        raise missing_extra(error.name or "onnxruntime", "export") from None
    import onnx

    shapes = {x.shape for x in inputs}
    if len(shapes) > 1:
        raise InputError(
            f"frames of {len(shapes)} sizes to calibrate on, expected one size", hint="give frames of one camera"
        )
    chunk = min(_CHUNK, len(inputs))
    inputs = inputs[: len(inputs) // chunk * chunk]  # the library takes whole chunks alone
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # It is prepared: without this mark the library asks for it on stderr.
    add_pre_process_metadata(prepared)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source = Path(folder) / "float32.onnx"
        onnx.save(prepared, source)
        quantize_static(
            source,
            path,
            Reader(model.graph.input[0].name, inputs, step),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=sorted(kept),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "CalibPercentile": PERCENTILE,
                "CalibStridedMinMax": chunk,
            },
        )
    made = onnx.load(path)
    del made.metadata_props[:]
    for opset in [o for o in made.opset_import if o.domain not in ("", "ai.onnx")]:
        made.opset_import.remove(opset)
    _leave_others_in_float(made.graph)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return len(inputs)


def _leave_others_in_float(onnx_graph: Any) -> None:
    """Only convolutions read what was quantised for them; a residual sum reads the float32 tensor.

    That costs no accuracy, and a pair with a second reader would stop ONNX Runtime from fusing the convolution: a third
    of them stayed in float32. The pair right after a convolution stays for all, since the fusion wants it.
    """
    maker = {name: node for node in onnx_graph.node for name in node.output}
    real: dict[str, str] = {}
    for node in onnx_graph.node:
        quantise = maker.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantise is not None and quantise.op_type == "QuantizeLinear":
            source = maker.get(quantise.input[0])
            if source is None or source.op_type != "Conv":
                real[node.output[0]] = quantise.input[0]
    for node in onnx_graph.node:
        if node.op_type != "Conv":
            node.input[:] = [real.get(name, name) for name in node.input]
