"""A network to an engine's bytes: what every build of ours sets, progress, Ctrl-C, and the timing cache."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..engine.tensorrt.api import Builder, Config, Network, TensorRt
from ..engine.tensorrt.engine_file import Profile
from ..errors import InputError, OutputError

OnProgress = Callable[[int, int | None], None]


def serialize(
    trt: TensorRt,
    builder: Builder,
    network: Network,
    profiles: Mapping[str, Profile],
    what: str,
    archs: Sequence[int] = (),
    timing_cache: Path | None = None,
    on_progress: OnProgress | None = None,
    workspace: int | None = None,
) -> bytes:
    """Build a parsed network.

    profiles: shapes of each input by its name.  what: the ONNX file's name, for messages.
    archs: of TensorRT-RTX; () is this machine's GPU.  timing_cache: full TensorRT's measurements, read and kept there.
    workspace: bytes of device memory for the build's tactics; None: all.
    Raises ArtifactError with the builder's own words, InputError and OutputError (of the cache), KeyboardInterrupt
    (once the builder has stopped).
    """
    config = trt.config(builder)
    shapes = builder.create_optimization_profile()
    for name, profile in profiles.items():
        shapes.set_shape(name, profile.minimum, profile.optimum, profile.maximum)
    if config.add_optimization_profile(shapes) < 0:
        listed = ", ".join(f"{name} {profile}" for name, profile in profiles.items())
        raise trt.failed(f"refused the profile {listed} for {what}", "choose other sizes")
    trt.set_archs(config, archs)
    # On by default, and rounds what is multiplied to 10 bits of mantissa; fp32 here means fp32.
    config.clear_flag(trt.module.BuilderFlag.TF32)
    if trt.is_rtx:
        _require_user_allocation(trt, config)
    if workspace is not None:
        config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, workspace)
    if timing_cache is not None:
        _load_timing(trt, config, timing_cache)
    with _interrupts() as interrupted:
        config.progress_monitor = monitor = _monitor(trt.module, on_progress, interrupted)
        plan = builder.build_serialized_network(network, config)
    del monitor  # the builder holds no reference of its own
    if interrupted.is_set():
        raise KeyboardInterrupt
    if plan is None:
        short = "memory" in trt.log.reason().lower() or "workspace" in trt.log.reason().lower()
        hint = "a smaller --profile or --batch takes less memory; a --workspace limit can be too small" if short else ""
        raise trt.failed(f"cannot build {what}", hint)
    if timing_cache is not None:
        _save_timing(config, timing_cache)
    return bytes(plan)


def _require_user_allocation(trt: TensorRt, config: Config) -> None:
    """No allocation while the engine runs, so that it can be captured in a CUDA graph with memory of our own.

    Without the flag, TensorRT-RTX may allocate in the middle of a run of large shapes (BuilderFlag's documentation).
    """
    flag = trt.module.BuilderFlag.REQUIRE_USER_ALLOCATION
    config.set_flag(flag)
    if not config.get_flag(flag):  # a flag that it refuses is an error in the log, and no exception
        raise trt.failed("refused REQUIRE_USER_ALLOCATION, which CUDA graphs want")


def _monitor(module: Any, on_progress: OnProgress | None, interrupted: threading.Event) -> Any:
    """The module's IProgressMonitor: adds up the steps of all phases, and stops the build once it is interrupted."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.done = self.total = 0
            self.open: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.open[phase_name] = num_steps
            self.total += num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.advance(phase_name, 1)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.advance(phase_name, self.open.get(phase_name, 0))

        def advance(self, phase_name: str, steps: int) -> None:
            steps = min(steps, self.open.get(phase_name, 0))  # a phase may report more steps than it announced
            self.open[phase_name] = self.open.get(phase_name, 0) - steps
            self.done += steps
            if on_progress is not None and steps:
                on_progress(self.done, self.total)

    return Monitor()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets this event meanwhile: an exception out of a callback would end the process inside the library."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _load_timing(trt: TensorRt, config: Config, path: Path) -> None:
    """Give the build what an earlier one measured; a cache of another machine or version is left out."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint=f"remove {path}") from error
    if not config.set_timing_cache(config.create_timing_cache(data), False) and not config.set_timing_cache(
        config.create_timing_cache(b""), False
    ):
        raise trt.failed("refused a timing cache")


def _save_timing(config: Config, path: Path) -> None:
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(bytes(data))
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
