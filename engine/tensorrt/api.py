"""One door to both TensorRT APIs: full TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`).

Their names are the same but for a few, and the few are handled here:

| what | TensorRT 10 | TensorRT 11 | TensorRT-RTX 1.7 |
| --- | --- | --- | --- |
| strong typing | a creation flag, which must be given | always; the flag is ignored | always; the flag is ignored |
| targets | the GPU that builds | the GPU that builds | a list of compute capabilities, no GPU needed |
| timing cache | yes | yes | calls do nothing, and ask for a GPU: not called |
| runtime cache | no | no | yes |

Weak typing, EXPLICIT_BATCH, the precision flags and the calibrators of older versions are not used: precision is in
the ONNX file. Whether a call worked is judged by what it returns, never by the log, since a good build on a machine
without a GPU logs errors as well; the log explains a call that failed.

The Protocols below are the part of the API that is used here, since no version ships type stubs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ...errors import ArtifactError, BackendMissingError, UsageError, missing_extra

FLAVOURS: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # flavour -> module
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
OLDEST = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 7)}
# What TensorRT-RTX 1.7 can build for. A build asks the library itself; this is for messages where it is not opened.
RTX_ARCHS = (75, 80, 86, 89, 120, 121)
DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64"}

_WARNING = 2  # severities: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose
_NO_DRIVER = ("cudaError 35", "Error Code 1: Cuda Runtime")  # what every build without a GPU logs


class Tensor(Protocol):
    """A network's tensor. `dtype` is the module's enum; -1 in the shape is a free dimension."""

    name: str
    dtype: Any
    shape: Sequence[int]


class Layer(Protocol):
    """A network's layer; absent optional inputs are None."""

    name: str
    type: Any
    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor | None: ...


class Network(Protocol):
    num_layers: int
    num_inputs: int
    num_outputs: int

    def get_layer(self, index: int) -> Layer: ...
    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...


class Config(Protocol):
    progress_monitor: Any
    num_compute_capabilities: int  # TensorRT-RTX

    def add_optimization_profile(self, profile: Any) -> int: ...
    def clear_flag(self, flag: Any) -> None: ...
    def set_flag(self, flag: Any) -> None: ...
    def get_flag(self, flag: Any) -> bool: ...
    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...
    def create_timing_cache(self, data: bytes) -> Any: ...
    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> Any: ...
    def set_compute_capability(self, capability: Any, index: int) -> bool: ...  # TensorRT-RTX


class Builder(Protocol):
    def create_network(self, flags: int) -> Network | None: ...
    def create_builder_config(self) -> Config | None: ...
    def create_optimization_profile(self) -> Any: ...
    def build_serialized_network(self, network: Network, config: Config) -> Any: ...


class Parser(Protocol):
    num_errors: int

    def parse_from_file(self, path: str) -> bool: ...
    def get_error(self, index: int) -> Any: ...


_KEPT = 1000  # entries; a server runs for months


class Log:
    """What TensorRT said, kept instead of printed: (severity, text), warnings and worse.

    severity: 0 internal error, 1 error, 2 warning.
    """

    def __init__(self) -> None:
        self.entries: deque[tuple[int, str]] = deque(maxlen=_KEPT)

    def add(self, severity: int, text: str) -> None:
        if severity <= _WARNING:
            self.entries.append((severity, " ".join(text.split())))

    def reason(self, most: int = 3) -> str:
        """The last errors, for a message; a missing driver is named only where nothing else is."""
        errors = list(dict.fromkeys(text for severity, text in self.entries if severity < _WARNING))
        telling = [text for text in errors if not any(mark in text for mark in _NO_DRIVER)]
        return "; ".join(text[:400] for text in (telling or errors)[-most:]) or "TensorRT gave no reason"

    def warnings(self) -> list[str]:
        """Each warning once, in order."""
        return list(dict.fromkeys(text for severity, text in self.entries if severity == _WARNING))


class TensorRt:
    """One flavour, opened.

    Attributes
    ----------
    flavour: "tensorrt" or "tensorrt-rtx".  name: for messages.  version: such as "1.7.1.116".
    module: the Python module.  log: what it has said so far.  logger: the module's own logger object that fills it.
    """

    def __init__(self, flavour: str, module: Any) -> None:
        self.flavour, self.name, self.module = flavour, NAMES[flavour], module
        self.version = str(module.__version__)
        self.log = Log()
        self.logger = _logger(module, self.log)

    def failed(self, what: str, hint: str = "") -> ArtifactError:
        """The error for a call that gave nothing: `what`, and what the log has on it."""
        return ArtifactError(f"{self.name} {self.version} {what}: {self.log.reason()}", hint=hint)

    def builder(self) -> Builder:
        """A Builder. ArtifactError where there is none to be had (full TensorRT without a GPU)."""
        hint = "latentseg doctor shows the GPU and its driver; --target tensorrt-rtx builds without one"
        made: Builder = self._made("cannot make a builder", lambda: self.module.Builder(self.logger), hint)
        return made

    def config(self, builder: Builder) -> Config:
        """A builder's configuration, to be filled in."""
        made: Config = self._made("cannot make a builder configuration", builder.create_builder_config)
        return made

    def network(self, builder: Builder) -> Network:
        """An empty, strongly typed network."""
        flags = self.module.NetworkDefinitionCreationFlag
        # TensorRT 10 types weakly without this flag; later versions keep the name and ignore it, or have dropped it.
        strong = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
        made: Network = self._made("cannot make a network", lambda: builder.create_network(strong))
        return made

    def parser(self, network: Network) -> Parser:
        """An ONNX parser that fills a network."""
        made: Parser = self._made("cannot make an ONNX parser", lambda: self.module.OnnxParser(network, self.logger))
        return made

    def runtime(self) -> Any:
        """A Runtime, which turns an engine file into an engine. ArtifactError without a GPU's driver."""
        hint = "latentseg doctor shows the GPU and its driver"
        return self._made("cannot make a runtime", lambda: self.module.Runtime(self.logger), hint)

    def deserialize(self, runtime: Any, data: bytes, what: str) -> Any:
        """An ICudaEngine out of an engine file's bytes; compare the sidecar with the machine first.

        what: the file, for the message.
        Raises ArtifactError where the library refuses it.
        """
        hint = "build it again on this machine; latentseg doctor shows the GPU and its driver"
        return self._made(f"cannot load {what}", lambda: runtime.deserialize_cuda_engine(data), hint)

    @property
    def is_rtx(self) -> bool:
        return self.flavour == "tensorrt-rtx"

    def archs(self) -> tuple[int, ...]:
        """Compute capabilities (major * 10 + minor) to build for without a GPU; none with full TensorRT."""
        if not self.is_rtx:
            return ()
        members = self.module.ComputeCapability.__members__
        return tuple(sorted(int(name[2:]) for name in members if name.startswith("SM")))

    def check_archs(self, archs: Sequence[int]) -> None:
        """UsageError unless `archs` can be built for; nothing given means the GPU of this machine."""
        if archs and not self.is_rtx:
            raise UsageError(
                "full TensorRT builds for the GPU of the machine that it runs on, and takes no compute capability",
                hint="leave out --arch and build on the GPU, or: --target tensorrt-rtx",
            )
        wrong = [arch for arch in archs if arch not in self.archs()]
        if wrong:
            raise UsageError(
                f"{self.name} {self.version} cannot build for compute capability {dotted(wrong)}, it offers "
                f"{dotted(self.archs())}",
                hint="give --arch some of these; for another GPU: --target tensorrt on a machine that has it",
            )

    def set_archs(self, config: Config, archs: Sequence[int]) -> None:
        """Aim a TensorRT-RTX build at compute capabilities; with none given, at the GPU of this machine."""
        self.check_archs(archs)
        if not self.is_rtx:
            return
        known = self.module.ComputeCapability
        wanted = [getattr(known, f"SM{arch}") for arch in archs] or [known.CURRENT]
        config.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted):
            if not config.set_compute_capability(capability, index):
                raise self.failed(f"refused compute capability {capability}", "latentseg doctor shows the GPU")

    def _made(self, what: str, make: Callable[[], Any], hint: str = "") -> Any:
        """What `make` gives; None and the exceptions of the bindings become an ArtifactError."""
        try:
            made = make()
        except (RuntimeError, TypeError) as error:  # a constructor that gives null is a TypeError of pybind11
            self.log.add(1, str(error))
            made = None
        if made is None:
            raise self.failed(what, hint)
        return made


def dotted(archs: Sequence[int]) -> str:
    """(80, 120) -> "8.0, 12.0", as compute capabilities are written."""
    return ", ".join(f"{arch // 10}.{arch % 10}" for arch in archs)


def is_installed(flavour: str) -> bool:
    """Whether a flavour's module is there, without importing it."""
    return importlib.util.find_spec(FLAVOURS[flavour]) is not None


def open_flavour(flavour: str) -> TensorRt:
    """Import one flavour of TensorRT.

    Raises
    ------
    UsageError: no such flavour. BackendMissingError: it is not installed, or its libraries are not.
    ArtifactError: its version is older than what this program knows.
    """
    if flavour not in FLAVOURS:
        raise UsageError(f"unknown TensorRT flavour '{flavour}', expected {' or '.join(FLAVOURS)}")
    name = FLAVOURS[flavour]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise _broken(flavour, error) from error
        raise missing_extra(name, flavour) from None
    except (ImportError, OSError) as error:
        raise _broken(flavour, error) from error
    opened = TensorRt(flavour, module)
    found = tuple(int(part) for part in opened.version.split(".")[:2] if part.isdigit())
    if found < OLDEST[flavour]:
        oldest = ".".join(map(str, OLDEST[flavour]))
        raise ArtifactError(
            f"{opened.name} {opened.version} is installed, expected at least {oldest}",
            hint=f"pip install --upgrade 'latentseg[{flavour}]'",
        )
    return opened


def _broken(flavour: str, error: BaseException) -> BackendMissingError:
    return BackendMissingError(
        f"{NAMES[flavour]} is installed but does not import: {error}", hint=f"pip install 'latentseg[{flavour}]'"
    )


def _logger(module: Any, log: Log) -> Any:
    # The base class is the module's, so that the class can only be made once the module is there.
    class Collector(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(int(severity), message)

    return Collector()
