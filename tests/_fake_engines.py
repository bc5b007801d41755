"""Engines that ONNX Runtime runs: a `tensorrt` or `tensorrt_rtx` whose engine files hold an ONNX model.

Its contexts keep TensorRT's rules: addresses are aligned, activation memory is given, work goes into the stream of a
`_fake_cuda.FakeCuda`, and a shape wants a run before it can be captured.
"""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from _fake_cuda import FakeCuda

from latentseg.engine.backends.base import TensorSpec
from latentseg.engine.bundle import Bundle
from latentseg.engine.tensorrt.engine_file import EngineFile, Profile
from latentseg.engine.tensorrt.sidecar import write_engine

DataType = Enum("DataType", ["FLOAT", "HALF", "UINT8"])
NAMES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "uint8": DataType.UINT8}
Strategy = Enum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
Mode = Enum("Mode", ["INPUT", "OUTPUT"])


def write_fake_engine(
    bundle: Bundle,
    cuda: FakeCuda,
    role: str = "segmenter",
    precision: str = "fp32",
    flavour: str = "tensorrt",
    *,
    dtype: str = "float32",
    frames: tuple[tuple[int, int, int], tuple[int, int, int]] = ((1, 8, 8), (4, 256, 256)),
    **changes: Any,
) -> Path:
    """Write an engine of a bundle's model, with a sidecar, into the bundle.

    dtype: of the engine's input where that is a latent.  frames: least and most of (batch, height, width).
    changes: fields of the sidecar that shall be otherwise.
    """
    model = bundle.model_path(role)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (first,), (last,) = session.get_inputs(), session.get_outputs()
    latents = role in ("decompressor", "segmenter")
    free = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

    def end(found: Any, kind: str) -> TensorSpec:
        shape = tuple(side if isinstance(side, int) else None for side in found.shape)
        return TensorSpec(found.name, np.dtype(kind), shape)

    def shape(size: tuple[int, int, int]) -> tuple[int, ...]:
        n, height, width = size
        return (n, *bundle.latent_shape(height, width)) if latents else (n, height, width, 3)

    source = end(first, dtype if latents else free[first.type])
    profile = Profile(shape(frames[0]), shape(frames[1]), shape(frames[1]))
    facts = {"input": [source.name, str(source.dtype)], "output": [last.name, free[last.type]]}
    data = json.dumps(facts).encode() + b"\n" + model.read_bytes()
    file = EngineFile(**{
        "bundle": bundle.name, "role": role, "precision": precision, "flavour": flavour,
        "version": FakeEngines.versions[flavour], "model_sha256": bundle.manifest["files"][role]["sha256"],
        "onnx_sha256": "0" * 64, "source": "bundle", "engine_sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data), "archs": (cuda.capability,), "profile": profile,
        "frames": Profile(frames[0], frames[1], frames[1]), "input": source, "output": end(last, free[last.type]),
        **changes,
    })  # fmt: skip
    return write_engine(bundle.path / "engines", data, file, overwrite=True)


class FakeEngines(ModuleType):
    """The module of one flavour. `calls` lists the contexts' calls; what is to go wrong is set before."""

    versions = {"tensorrt": "10.13.0.35", "tensorrt-rtx": "1.7.1.116"}  # noqa: RUF012

    def __init__(self, cuda: FakeCuda, flavour: str = "tensorrt") -> None:
        super().__init__(flavour.replace("-", "_"))
        self.__version__ = self.versions[flavour]
        self.cuda, self.rtx = cuda, flavour == "tensorrt-rtx"
        self.ExecutionContextAllocationStrategy = Strategy
        self.contexts: list[Context] = []
        self.refuse = ""  # the context's call that answers False
        self.capturable = True
        self.silent = False  # an engine that starts nothing on its stream
        self.caches: list[bytes] = []  # what runtime caches were given
        if self.rtx:
            self.CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
            self.DynamicShapesKernelSpecializationStrategy = Enum("Kernels", ["LAZY", "EAGER", "NONE"])

    class ILogger:
        def __init__(self) -> None: ...

    def Runtime(self, logger: Any) -> Any:
        def load(data: bytes) -> Any:
            assert self.cuda.depth, "an engine loaded without a current context"
            return Engine(self, data)

        return SimpleNamespace(deserialize_cuda_engine=load)


class Engine:
    """An ICudaEngine."""

    def __init__(self, module: FakeEngines, data: bytes) -> None:
        facts, model = data.split(b"\n", 1)
        self.module = module
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        ends = json.loads(facts)
        self.names = [ends["input"][0], ends["output"][0]]
        self.dtypes = dict([ends["input"], ends["output"]])
        self.num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == self.names[0] else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return NAMES[self.dtypes[name]]

    def get_tensor_shape(self, name: str) -> list[int]:
        found = self.session.get_inputs()[0] if name == self.names[0] else self.session.get_outputs()[0]
        return [side if isinstance(side, int) else -1 for side in found.shape]

    def create_execution_context(self, given: Any) -> Context:
        if self.module.rtx:
            assert given.strategy is Strategy.USER_MANAGED
            assert given.cuda_graph_strategy is self.module.CudaGraphStrategy.DISABLED
            kernels = self.module.DynamicShapesKernelSpecializationStrategy
            assert given.dynamic_shapes_kernel_specialization_strategy is kernels.EAGER
        else:
            assert given is Strategy.USER_MANAGED
        self.module.contexts.append(Context(self))
        return self.module.contexts[-1]

    def create_runtime_config(self) -> Any:
        assert self.module.rtx, "full TensorRT has no runtime cache"
        config = SimpleNamespace(strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)

        def deserialize(data: bytes) -> bool:
            self.module.caches.append(data)
            return data == b"kernels"

        cache = SimpleNamespace(deserialize=deserialize, serialize=lambda: b"kernels")
        config.create_runtime_cache = lambda: cache
        config.set_runtime_cache = lambda found: found is cache
        return config


class Context:
    """An IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.module = engine, engine.module
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.ran: set[tuple[int, ...]] = set()
        if self.module.rtx:
            self.is_stream_capturable = lambda stream: self.module.capturable

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0 and self.module.refuse != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == self.engine.names[0]
        self.shape = shape
        return self.module.refuse != "shape"

    def infer_shapes(self) -> list[str]:
        return [self.engine.names[0]] if self.module.refuse == "infer" else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        zeros = np.zeros(self.shape, self.engine.dtypes[self.engine.names[0]])
        found: tuple[int, ...] = self.compute(zeros).shape
        return found

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shape is not None
        return 16 * int(np.prod(self.shape))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        self.module.cuda.view(memory, size)
        self.memory = (memory, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def compute(self, array: np.ndarray) -> np.ndarray:
        source = array.astype(np.float32) if array.dtype == np.float16 else array
        result: np.ndarray = self.engine.session.run(None, {self.engine.names[0]: source})[0]
        return result

    def execute_async_v3(self, stream: int) -> bool:
        cuda, shape, (first, last) = self.module.cuda, self.shape, self.engine.names
        assert shape is not None
        assert stream
        assert self.memory[0]
        if self.module.refuse == "run" or (stream in cuda.captures and shape not in self.ran):
            return False
        self.ran.add(shape)
        if self.module.silent:
            return True
        dtype, kind = (np.dtype(self.engine.dtypes[name]) for name in (first, last))
        source, target = self.addresses[first], self.addresses[last]

        def work() -> None:
            found = cuda.view(source, int(np.prod(shape)) * dtype.itemsize, dtype).reshape(shape)
            result = self.compute(found).astype(kind)
            cuda.view(target, result.nbytes, kind)[:] = result.reshape(-1)

        cuda.start(stream, "engine", shape, work)
        return True
