"""A `tensorrt` that records what it is told: full TensorRT of a given version, whose libraries want a GPU.

It has no more names than that version has, so that a call of one flavour's own names on the other is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

PLAN = b"a plan"


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT64 = 9
    UINT8 = 5
    FP8 = 6


class LayerType(Enum):
    CONVOLUTION = 0
    CAST = 1
    QUANTIZE = 2
    DEQUANTIZE = 3


def tensor(name: str, dtype: str = "FLOAT", shape: tuple[int, ...] = (-1, 3, -1, -1)) -> Any:
    return SimpleNamespace(name=name, dtype=DataType[dtype], shape=shape)


def layer(kind: str, inputs: list[Any], *outputs: Any) -> Any:
    return SimpleNamespace(
        name=kind, type=LayerType[kind], num_inputs=len(inputs), num_outputs=len(outputs),
        get_input=lambda index: inputs[index], get_output=lambda index: outputs[index],
    )  # fmt: skip


def network(
    layers: list[Any] | None = None, ends: tuple[Any, ...] = (tensor("latent"), tensor("labels", "UINT8", (-1, -1, -1)))
) -> Any:
    """A parsed network; of one fp32 convolution unless told otherwise."""
    there = [layer("CONVOLUTION", [ends[0], tensor("w")], tensor("logits"))] if layers is None else layers
    return SimpleNamespace(
        num_layers=len(there), get_layer=lambda index: there[index], num_inputs=1, num_outputs=len(ends) - 1,
        get_input=lambda index: ends[0], get_output=lambda index: ends[1 + index],
    )  # fmt: skip


class FakeTensorRt(ModuleType):
    """The module. `calls`: (name, arguments) in order. What is to happen is set on it before the build."""

    def __init__(self, version: str = "10.13.0.35", name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__version__ = version
        self.calls: list[tuple[str, Any]] = []
        self.parsed = network()
        self.parser_errors: list[Any] = []
        self.plan: bytes | None = PLAN
        self.on_build: Callable[[Any, Any], None] = lambda monitor, logger: None
        self.foreign_timing = b""
        major = int(version.split(".")[0])
        flags = {"STRONGLY_TYPED": 1} | ({"EXPLICIT_BATCH": 0} if major < 11 else {})
        self.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", flags)
        self.BuilderFlag = Enum("BuilderFlag", {"TF32": 7})
        self.MemoryPoolType = Enum("MemoryPoolType", {"WORKSPACE": 0})
        self.ILogger = type("ILogger", (), {})
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        fake = self

        class Config:
            __slots__ = ("progress_monitor", "timing")

            def add_optimization_profile(self, profile: Any) -> int:
                fake.calls.append(("profile", profile.shapes))
                return 0

            def clear_flag(self, flag: Any) -> None:
                fake.calls.append(("clear_flag", flag.name))

            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                fake.calls.append(("memory", (pool.name, size)))

            def create_timing_cache(self, data: bytes) -> bytes:
                return data

            def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
                fake.calls.append(("timing", (cache, ignore_mismatch)))
                if cache and cache == fake.foreign_timing:
                    return False
                self.timing = cache
                return True

            def get_timing_cache(self) -> Any:
                return SimpleNamespace(serialize=lambda: self.timing + b"+measured")

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Any:
                fake.calls.append(("network", flags))
                return fake.parsed

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Any:
                shapes: list[Any] = []
                return SimpleNamespace(shapes=shapes, set_shape=lambda *shape: shapes.append(shape))

            def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
                fake.on_build(config.progress_monitor, self.logger)
                return fake.plan

        class OnnxParser:
            def __init__(self, network: Any, logger: Any) -> None:
                self.num_errors = len(fake.parser_errors)

            def parse_from_file(self, path: str) -> bool:
                fake.calls.append(("parse", path))
                return not fake.parser_errors

            def get_error(self, index: int) -> Any:
                return fake.parser_errors[index]

        self.Builder, self.OnnxParser = Builder, OnnxParser
