"""`tensorrt.plugin` as a stand-in, and a full TensorRT that has it and whose parser reads the file that it is given.

The plugin module checks what the package's own source checks when a plugin is registered (NVIDIA/TensorRT,
python/packaging/bindings_wheel/tensorrt/plugin), and its symbolic expressions can be evaluated.
"""

from __future__ import annotations

import inspect
import operator
import sys
import typing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from _fake_tensorrt import FakeTensorRt
from onnx import TensorProto

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.kernels import entropy
from latentseg.kernels.gpu.one_file import DecodeSpec

HEADER = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="context", tile=(4, 5))
ORDER = [
    "words", "lanes", "channels", "ranges", "tables", "table_map_words",
    "word_count", "frames", "channel_count", "height", "width", "ranges_a_frame", "out", "scratch",
]  # fmt: skip
_KINDS = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT32: "INT32", TensorProto.UINT8: "UINT8",
}  # fmt: skip


def kernel(spec: DecodeSpec, **other: Any) -> Any:
    """What `compile_plugin` gives, without Triton."""
    arguments = tuple((name, "int32" if 6 <= index < 12 else "pointer") for index, name in enumerate(ORDER))
    facts = {"bits": spec.bits, "tile": spec.tile, "floats": spec.floats, "arch": spec.arch, "arguments": arguments}
    facts |= {"version": "8.7", "target": f"sm_{spec.arch}a", "registers": 99}
    return SimpleNamespace(name="entry", text="ptx", warps=1, shared=1024, **facts | other)


def payloads_of(frames: int) -> list[bytes]:
    """Payloads of streams like HEADER."""
    rng = np.random.default_rng(frames)
    rows = np.clip(np.rint(rng.normal(100, 4, (frames, *HEADER.latent_shape))), 0, 255).astype(np.uint8)
    lo = np.zeros(3, np.float32)
    return [entropy.encode_symbols(q, HEADER, lo, lo + 1) for q in rows]


class Symbol:
    """SymInt32 and ShapeExpr: operators with the expression on the left, none reflected (_tensor.py)."""

    def __init__(self, value: Any = None) -> None:
        self.compute = value.compute if isinstance(value, Symbol) else lambda sizes: sizes.get(value, value)

    def _op(self, function: Any, other: int | Symbol) -> Symbol:
        assert isinstance(other, int | Symbol)
        result, right = Symbol(), Symbol(other)
        result.compute = lambda sizes: function(self.compute(sizes), right.compute(sizes))
        return result

    def __add__(self, other: int | Symbol) -> Symbol:
        return self._op(operator.add, other)

    def __mul__(self, other: int | Symbol) -> Symbol:
        return self._op(operator.mul, other)


def value(symbol: int | Symbol, **sizes: int) -> int:
    return Symbol(symbol).compute(sizes)


class TensorDesc:
    def __init__(self, shape_expr: Any, dtype: Any) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


class KernelLaunchParams:
    def __init__(self) -> None:
        for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem"):
            self.__dict__[name] = Symbol(0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.__dict__, name
        self.__dict__[name] = Symbol(value)


class SymIntExprs(list):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class FakePlugins(ModuleType):
    SymInt32, from_shape_expr = Symbol, TensorDesc
    TensorDesc, KernelLaunchParams, SymIntExprs = TensorDesc, KernelLaunchParams, SymIntExprs

    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.op = SimpleNamespace()
        self.registered: dict[str, Any] = {}
        self.compiled: dict[str, Any] = {}

    @staticmethod
    def cdiv(first: int | Symbol, second: int) -> Symbol:
        assert isinstance(first, Symbol)  # two numbers are a ValueError there
        return first._op(lambda a, b: -(-a // b), second)

    def register(self, plugin_id: str) -> Any:
        def decorate(function: Any) -> None:  # the checks of _validate.py and of _lib.py
            namespace, name = plugin_id.split("::")
            assert "." not in plugin_id
            assert namespace not in ("", "trt", "tensorrt", "std")
            signature = inspect.signature(function)
            results = typing.get_args(signature.return_annotation)
            assert typing.get_origin(signature.return_annotation) is tuple
            for kind in (*results, *(parameter.annotation for parameter in signature.parameters.values())):
                assert issubclass(kind, TensorDesc)
            home = self.op.__dict__.setdefault(namespace, SimpleNamespace())
            assert not hasattr(home, name), f"already has a definition for '{name}'"
            setattr(home, name, function)
            self.registered[plugin_id] = function

        return decorate

    def aot_impl(self, plugin_id: str) -> Any:
        def decorate(function: Any) -> None:
            inputs = inspect.signature(self.registered[plugin_id]).parameters
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*inputs, "outputs", "tactic"]
            assert typing.get_args(signature.return_annotation) == (str, str, KernelLaunchParams, SymIntExprs)
            self.compiled[plugin_id] = function

        return decorate


def fake_plugins(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> FakePlugins:
    """Give a stand-in of `tensorrt` its plugins, and make both importable."""
    plugins = FakePlugins()
    facts = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "QuickPluginCreationRequest": object}
    module.__dict__.update(facts, plugin=plugins)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugins)
    return plugins


class OneFileTensorRt(FakeTensorRt):
    """Full TensorRT with plugins. Its parser reads the ends of the ONNX file, and knows no plugin but registered ones.

    `read`: the bytes of the files that were parsed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        plugins = fake_plugins(monkeypatch, self)
        self.read: list[bytes] = []
        fake = self

        class Parser:
            def __init__(self, network: Any, logger: Any) -> None:
                self.network, self.errors = network, list(fake.parser_errors)
                self.num_errors = len(self.errors)

            def parse_from_file(self, path: str) -> bool:
                data = Path(path).read_bytes()
                fake.read.append(data)
                model = onnx.load_from_string(data)
                for node in model.graph.node:
                    if node.domain:
                        assert f"{node.domain}::{node.op_type}" in plugins.compiled
                inputs, outputs = ([_tensor(end) for end in ends] for ends in (model.graph.input, model.graph.output))
                self.network.num_inputs, self.network.num_outputs = len(inputs), len(outputs)
                self.network.get_input, self.network.get_output = inputs.__getitem__, outputs.__getitem__
                return not self.errors

            def get_error(self, index: int) -> Any:
                return self.errors[index]

        self.OnnxParser = Parser  # type: ignore[assignment]


def _tensor(end: onnx.ValueInfoProto) -> Any:
    found = end.type.tensor_type
    shape = tuple(-1 if side.dim_param else side.dim_value for side in found.shape.dim)
    return SimpleNamespace(name=end.name, dtype=SimpleNamespace(name=_KINDS[found.elem_type]), shape=shape)
