"""ONNX Runtime: the embedded default, on any CPU; and its CUDA provider where that is installed."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import ArtifactError, BackendMissingError, missing_extra
from .base import Backend, TensorSpec

_DTYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
}


class OnnxRuntimeBackend(Backend):
    """An ONNX file on ONNX Runtime's CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    asked: ClassVar[str] = "CPUExecutionProvider"

    def _load(self) -> tuple[TensorSpec, TensorSpec, str]:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing_extra("onnxruntime", "cpu") from error
        available = ort.get_available_providers()
        if self.asked not in available:
            raise self._not_active(f"this onnxruntime has {', '.join(available)}")
        try:
            session = ort.InferenceSession(str(self.path), self._options(ort), providers=[self.asked])
        except Exception as error:  # its exception classes share no base but Exception
            raise ArtifactError(
                f"onnxruntime {ort.__version__} cannot load {self.path}: {_first_line(error)}",
                hint="export the bundle again, or install the onnxruntime it was verified with",
            ) from error
        # A provider that fails to start is replaced by the CPU with no more than a log line: read back what is active.
        active = session.get_providers()
        if active[0] != self.asked:
            raise self._not_active(f"the session runs on {active[0]}")
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
        options.intra_op_num_threads = self.threads or _usable_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: they arrive as exceptions, and stderr is for people
        # Several sessions live in one process and take turns with the entropy coder. A pool that spins while it waits
        # steals their cores: on 2 cores with other load, two sessions in turn took 86 ms spinning and 31 ms not, one
        # alone 31 to 44 ms against 15 (8 convolutions 96x96x3x3 at 45x60).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _run(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            output: npt.NDArray[Any] = self._session.run(None, {self.input.name: array})[0]
        except Exception as error:
            raise ArtifactError(
                f"{self.path.name} failed on input {list(array.shape)}: {_first_line(error)}",
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

    def _not_active(self, found: str) -> BackendMissingError:
        return BackendMissingError(
            f"asked for {self.asked}, found: {found}", hint="latentseg doctor shows what this machine can run"
        )


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """An ONNX file on ONNX Runtime's CUDA provider (the package onnxruntime-gpu)."""

    name: ClassVar[str] = "onnxruntime-cuda"
    asked: ClassVar[str] = "CUDAExecutionProvider"


def _usable_cores() -> int:
    # The affinity mask, where the system has one, knows of the container's limit; the count of cores does not.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
