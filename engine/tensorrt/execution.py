"""An engine file brought to a device, and execution contexts of it: the thin part that only runs on a GPU.

What TensorRT returns is judged, call by call; what it logged explains a call that failed. Activation memory is the
caller's, so that contexts whose turns a stream orders share it: the way that NVIDIA advises for several captured
graphs, each of which wants a context of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import ArtifactError
from ...kernels.gpu.device import Device
from .api import DTYPES, NAMES, open_flavour
from .engine_file import EngineFile, Profile, build_command
from .sidecar import check_machine, engine_bytes, read_engine


def open_device() -> Device:
    """The first CUDA device, through PyCUDA. Raises BackendMissingError without PyCUDA, a driver, or a device."""
    from ...kernels.gpu.pycuda import PycudaDevice

    return PycudaDevice(0)


class LoadedEngine:
    """An engine file, compared with the machine and deserialised. Everything inside `with device.active()`.

    Attributes
    ----------
    file: what the sidecar says.  api: the flavour of TensorRT that loaded it.
    """

    def __init__(self, path: Path, device: Device, bundle: str = "") -> None:
        """bundle: its path or name, for the command that builds the engine again.

        Raises ArtifactError for an engine that does not fit this machine, before TensorRT sees a byte of it, or that
        TensorRT refuses; BackendMissingError without its flavour of TensorRT.
        """
        self.path, self.device, self.bundle = path, device, bundle
        self.file: EngineFile = read_engine(path)
        self.api = open_flavour(self.file.flavour)
        check_machine(self.file, self.api.flavour, self.api.version, device.capability, bundle)
        self._config: Any = None
        self._cache: Any = None
        self._cached = b""
        self._runtime: Any = self.api.runtime()
        self._engine: Any = self.api.deserialize(self._runtime, engine_bytes(path, self.file), path.name)
        self._check_ends()
        if self.api.is_rtx:
            self._config, self._cache = self._runtime_config()

    @property
    def provider(self) -> str:
        """What it runs on, for people: `TensorRT-RTX 1.7.1.116 on NVIDIA ... (8.9)`."""
        capability = f"{self.device.capability // 10}.{self.device.capability % 10}"
        return f"{NAMES[self.file.flavour]} {self.api.version} on {self.device.name} ({capability})"

    def _check_ends(self) -> None:
        """The engine's own word on its ends, against the sidecar's."""
        engine, found = self._engine, {}
        for index in range(int(engine.num_io_tensors)):
            name = engine.get_tensor_name(index)
            dtype = DTYPES.get(engine.get_tensor_dtype(name).name, "unknown")
            shape = tuple(None if side < 0 else int(side) for side in engine.get_tensor_shape(name))
            found[engine.get_tensor_mode(name).name, name] = (dtype, shape)
        expected = {
            (mode, end.name): (str(end.dtype), end.shape)
            for mode, end in (("INPUT", self.file.input), ("OUTPUT", self.file.output))
        }
        if found != expected:
            raise ArtifactError(
                f"{self.path.name} has {found}, its sidecar says {expected}", hint=self.file.rebuild(self.bundle)
            )

    def _runtime_config(self) -> tuple[Any, Any]:
        """TensorRT-RTX: how contexts run, and the cache of the kernels that it makes at run time."""
        module = self.api.module
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        # Graphs are captured here, copies and decoder included; a strategy that makes kernels in the background would
        # leave the slow ones in them for good.
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED
        kernels = module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        cache = config.create_runtime_cache()
        with suppress(OSError):
            stored = self.cache_path.read_bytes()
            # A cache of another machine or version is refused, and then made anew: it only saves time.
            self._cached = stored if cache.deserialize(stored) else b""
        if not config.set_runtime_cache(cache):
            raise self.api.failed("refused a runtime cache")
        return config, cache

    @property
    def cache_path(self) -> Path:
        """Where the kernels that TensorRT-RTX made at run time are kept."""
        return self.path.with_suffix(".runtime")

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise ArtifactError, with the profile and the command that widens it, unless the profile admits an input."""
        if not self.file.profile.admits(tuple(shape)):
            raise ArtifactError(
                f"{self.path.name}: an input of {'x'.join(map(str, shape))} is outside the engine's profile "
                f"{self.file.profile}",
                hint=wider_command(self.file, shape, self.bundle),
            )

    def context(self) -> Any:
        """A new IExecutionContext, its memory yet to be given."""
        made = (
            self._engine.create_execution_context(self._config)
            if self._config is not None
            else self._engine.create_execution_context(self.api.module.ExecutionContextAllocationStrategy.USER_MANAGED)
        )
        if made is None:
            raise self.api.failed(f"cannot run {self.path.name}", "latentseg doctor shows the GPU and its driver")
        return made

    def close(self) -> None:
        """Keep the runtime cache and free the engine; all its contexts must be gone."""
        try:
            self._save_cache()
        finally:
            self._cache = self._config = self._engine = self._runtime = None

    def _save_cache(self) -> None:
        if self._cache is None:
            return
        blob = self._cache.serialize()
        data = b"" if blob is None else bytes(memoryview(blob))
        if not data or data == self._cached:
            return
        partial = self.cache_path.with_name(self.cache_path.name + ".partial")
        with suppress(OSError):  # a bundle on a read-only disk: the kernels are made anew at the next start
            partial.write_bytes(data)
            partial.replace(self.cache_path)


def wider_command(file: EngineFile, shape: Sequence[int], bundle: str = "") -> str:
    """The command that builds an engine again with a profile that admits an input of this shape as well."""
    if file.input.shape[-1] == 3:  # frames, (N, H, W, 3)
        wanted = tuple(shape[:3])
    else:  # latents, (N, C, h, w)
        stride = -(-file.frames.maximum[1] // file.profile.maximum[2])
        wanted = (shape[0], shape[2] * stride, shape[3] * stride)
    frames = Profile(
        tuple(map(min, file.frames.minimum, wanted)), file.frames.optimum, tuple(map(max, file.frames.maximum, wanted))
    )
    archs = file.archs if file.flavour == "tensorrt-rtx" else ()
    return build_command(
        bundle or file.bundle, file.role, file.precision, file.flavour, str(frames), archs,
        frames=file.source == "frames",
    )  # fmt: skip


class Execution:
    """One execution context on a stream: `prepare` it for an input shape, `bind` it to buffers, then `enqueue`.

    Contexts that share memory must share the stream.
    """

    def __init__(self, loaded: LoadedEngine, stream: int) -> None:
        self.loaded, self.stream = loaded, stream
        self._context = loaded.context()
        self._judge(self._context.set_optimization_profile_async(0, stream), "the first profile")

    def prepare(self, shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Set the input's shape; bytes of activation memory that it takes, and the output's shape.

        Raises ArtifactError where TensorRT refuses it.
        """
        file, context, what = self.loaded.file, self._context, f"shape {tuple(shape)}"
        self._judge(context.set_input_shape(file.input.name, tuple(shape)), what)
        try:
            lacking = list(context.infer_shapes())
        except RuntimeError as error:
            raise self.loaded.api.failed(f"refused {what} for {self.loaded.path.name} ({error})") from error
        result = tuple(int(side) for side in context.get_tensor_shape(file.output.name))
        self._judge(not lacking and min(result) > 0, f"{what}, which leaves {lacking or result} open,")
        return int(context.update_device_memory_size_for_shapes()), result

    def bind(self, memory: int, size: int, source: int, result: int) -> None:
        """Give the prepared context addresses: activation memory (of `size` bytes), input, output."""
        file, context = self.loaded.file, self._context
        context.set_device_memory(memory, size)
        self._judge(context.set_tensor_address(file.input.name, source), "the input's address")
        self._judge(context.set_tensor_address(file.output.name, result), "the output's address")

    def enqueue(self) -> None:
        """Start the engine on the stream, or record it there. Raises ArtifactError."""
        self._judge(self._context.execute_async_v3(self.stream), "a run")

    def check_capturable(self) -> None:
        """Raise ArtifactError where TensorRT says that this context cannot be captured (TensorRT-RTX says so)."""
        check = getattr(self._context, "is_stream_capturable", None)
        if check is not None and not check(self.stream):
            raise ArtifactError(
                f"{self.loaded.path.name} cannot be captured as a CUDA graph: TensorRT-RTX wants to allocate memory in "
                "the middle of it",
                hint=self.loaded.file.rebuild(self.loaded.bundle),
            )

    def _judge(self, good: bool, what: str) -> None:
        if not good:
            raise self.loaded.api.failed(f"refused {what} for {self.loaded.path.name}")
