"""ONNX Runtime: the embedded default, on any CPU; and its CUDA provider where that is installed (onnxruntime-gpu).

What the options below mean, and their defaults: ONNX Runtime's documentation, "CUDA Execution Provider".
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, BackendInactiveError, BackendMissingError, missing_extra
from .base import Backend, TensorSpec, first_line, usable_cores

_DTYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


_PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": (
        "CUDAExecutionProvider",
        {
            # On by default, and fp32 here means fp32: TF32 rounds what it multiplies to 11 bits of mantissa. Where
            # cuDNN has no plan without TF32 it may still take one with it; NVIDIA_TF32_OVERRIDE=0 in the environment,
            # which works on the whole process, forbids that too.
            "use_tf32": "0",
            # Times every convolution algorithm at each new shape, so that the first run of a shape is slow: a stream
            # has one shape.
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        },
    ),
}
# What a network spends its time in, and what handles full-size logits; ONNX Runtime keeps the arithmetic of shapes on
# the CPU on purpose.
_HEAVY = ("Conv", "Gemm", "MatMul", "Resize", "ArgMax")


class OnnxRuntimeBackend(Backend):
    """An ONNX file on one of ONNX Runtime's providers: "cpu" (the default), or "cuda".

    "cuda" runs on the first GPU that the process sees (CUDA_VISIBLE_DEVICES chooses). It is an error where the session,
    or a single convolution, matrix product, resizing or argmax of it, is on another provider than the one asked for.
    """

    name: ClassVar[str] = "onnxruntime"
    providers: ClassVar[tuple[str, ...]] = tuple(_PROVIDERS)

    def _load(self) -> tuple[TensorSpec, TensorSpec, str]:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing_extra("onnxruntime", "cpu") from error
        asked, settings = _PROVIDERS[self.asked]
        available = ort.get_available_providers()
        if asked not in available:
            raise self._not_active(f"this onnxruntime has {', '.join(available)}")
        try:
            session = ort.InferenceSession(str(self.path), self._options(ort), providers=[(asked, settings)])
        except Exception as error:  # its exception classes share no base but Exception
            raise ArtifactError(
                f"onnxruntime {ort.__version__} cannot load {self.path}: {first_line(error)}",
                hint="export the bundle again, or install the onnxruntime it was verified with",
            ) from error
        # A provider that fails to start is replaced by the CPU with no more than a log line: read back what is active.
        active = session.get_providers()
        if active[0] != asked:
            raise self._not_active(f"the session runs on {active[0]}", BackendInactiveError)
        elsewhere = _heavy_nodes_elsewhere(session, asked)
        if elsewhere:
            raise self._not_active(
                f"{len(elsewhere)} operations run elsewhere, such as {elsewhere[0]}", BackendInactiveError
            )
        ends = (*session.get_inputs(), *session.get_outputs())
        if len(ends) != 2:
            raise ArtifactError(
                f"{self.path}: {len(session.get_inputs())} inputs and {len(session.get_outputs())} outputs, "
                "expected one of each"
            )
        self._session = session
        return self._spec(ends[0]), self._spec(ends[1]), active[0]

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads or usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: they arrive as exceptions, and stderr is for people
        # Several sessions live in one process and take turns with the entropy coder. A pool that spins while it waits
        # steals their cores: on 2 cores with other load, two sessions in turn took 86 ms spinning and 31 ms not, one
        # alone 31 to 44 ms against 15 (8 convolutions 96x96x3x3 at 45x60).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without VNNI, x86 adds products of 8-bit integers in pairs of 16 bits, which overflow: the shipped int8
        # segmenter had an mIoU of 0.62 in place of 0.73 there. This takes exact kernels on such CPUs alone.
        options.add_session_config_entry("session.x64quantprecision", "1")
        # Which provider got which operation, for `_heavy_nodes_elsewhere`.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _run(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            output: npt.NDArray[Any] = self._session.run(None, {self.input.name: array})[0]
        except Exception as error:
            raise ArtifactError(
                f"{self.path.name} failed on input {list(array.shape)}: {first_line(error)}",
                hint="latentseg verify checks the bundle on this machine",
            ) from error
        return output

    def _close(self) -> None:
        del self._session

    def _spec(self, end: Any) -> TensorSpec:
        if end.type not in _DTYPES:
            raise ArtifactError(f"{self.path}: {end.name} is {end.type}, expected one of {', '.join(_DTYPES)}")
        shape = tuple(d if isinstance(d, int) else None for d in end.shape)
        return TensorSpec(end.name, np.dtype(_DTYPES[end.type]), shape)

    def _not_active(self, found: str, kind: type[BackendMissingError] = BackendMissingError) -> BackendMissingError:
        return kind(
            f"asked for {_PROVIDERS[self.asked][0]}, found: {found}",
            hint="latentseg doctor shows what this machine can run",
        )


def _heavy_nodes_elsewhere(session: Any, provider: str) -> list[str]:
    return [
        f"{node.op_type} on {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
        if any(name in node.op_type for name in _HEAVY)
    ]
