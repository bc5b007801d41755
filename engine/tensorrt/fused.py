"""What both fused runners share, the receiver (`runner.py`) and the sender (`sender.py`): a device, an engine, slots,
and the batches in flight."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from ...bitstream import StreamHeader
from ...errors import ArtifactError, InputError, LatentsegError, UsageError
from ...kernels.gpu.device import Device
from ...kernels.gpu.images import KernelSet, load_kernels
from ..bundle import Bundle
from .execution import LoadedEngine
from .plan import BufferPlan, GraphKey, SenderPlan
from .sidecar import bundle_spec
from .slots import EngineSlot

KERNEL_FOLDER = "kernels"
S = TypeVar("S", bound=EngineSlot)


class FusedRunner(Generic[S]):
    """A device, an engine on it, and slots, each with a batch in flight or free. A context manager.

    Attributes
    ----------
    provider: what it runs on.  host_bytes: pinned memory.
    """

    def __init__(self, batch: int, device: Callable[[], Device]) -> None:
        """batch: frames a batch at most.  device: opens the device, which is closed with this."""
        self.batch = batch
        self.provider, self.host_bytes = "", 0
        self._slots: list[S] = []
        self._flying: dict[int, S] = {}
        self._next, self._closed = 0, False
        self._loaded: LoadedEngine | None = None
        self._device = device()

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """The device's context, for what `__init__` does in it; an error frees everything."""
        try:
            with self._device.active():
                yield
        except BaseException:
            with suppress(LatentsegError):
                self.close()
            raise

    def _load(self, path: Path, bundle: Bundle) -> LoadedEngine:
        self._loaded = loaded = LoadedEngine(path, self._device, bundle_spec(bundle))
        self.provider = loaded.provider
        return loaded

    def _fill(self, slots: int, plan: BufferPlan | SenderPlan, make: Callable[[], S]) -> None:
        """Make the slots, after a look at whether the engine takes the batches that there can be."""
        assert self._loaded is not None
        for frames in (1, self.batch):  # the last batch of a stream may be any smaller
            self._loaded.check_shape(plan.input_shape(frames))
        for _ in range(slots):
            self._slots.append(make())
        self.host_bytes = slots * plan.host_bytes

    def _free_slot(self, frames: int) -> S:
        """A slot without a batch. Raises UsageError for a batch of the wrong length, or where there is none."""
        self._check_open()
        if not 1 <= frames <= self.batch:
            raise UsageError(f"a batch of {frames} frames, expected 1 to {self.batch}")
        flying = self._flying.values()
        slot = next((slot for slot in self._slots if slot not in flying), None)
        if slot is None:
            raise UsageError(f"all {len(self._slots)} slots are in flight", hint="collect a ticket first")
        return slot

    def _start(self, slot: S, key: GraphKey) -> int:
        """Start the batch that is ready in a slot; its number among those in flight."""
        with self._device.active():
            try:
                slot.start(key)
            except BaseException:
                with suppress(LatentsegError):  # what was started reads the slot's memory
                    slot.wait()
                raise
        self._next += 1
        self._flying[self._next] = slot
        return self._next

    def close(self) -> None:
        """Wait for what is in flight and free everything; may be called twice."""
        if self._closed:
            return
        self._closed = True
        with suppress(LatentsegError), self._device.active():
            for slot in self._slots:
                with suppress(LatentsegError):
                    slot.wait()
                slot.forget()
            if self._loaded is not None:
                self._loaded.close()
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the fused runner is closed, expected it open")


def check_sizes(bundle: Bundle, header: StreamHeader, size: tuple[int, int], batch: int, slots: int) -> None:
    """Raise UsageError for batch or slots below 1 or a size that is not the stream's, ArtifactError for another
    codec's stream."""
    if batch < 1 or slots < 1:
        raise UsageError(f"batch {batch} and slots {slots}, expected at least 1 of each")
    bundle.check_stream(header)
    if bundle.latent_shape(*size) != header.latent_shape:
        raise UsageError(
            f"frames of {size[0]}x{size[1]} have latents of {bundle.latent_shape(*size)}, the stream's are "
            f"{header.latent_shape}"
        )


def stream_kernels(bundle: Bundle, header: StreamHeader) -> KernelSet:
    """The bundle's compiled kernels, checked against the stream. Raises ArtifactError with the command to type."""
    with naming_the_build(bundle):
        kernels = load_kernels(bundle.path / KERNEL_FOLDER)
        kernels.check_stream(header.bits, header.tile, header.scaling.mode == "codebook")
    return kernels


@contextmanager
def naming_the_build(bundle: Bundle) -> Iterator[None]:
    """What is wrong with kernels, with the command that makes them for every GPU and this bundle."""
    try:
        yield
    except (InputError, ArtifactError) as error:
        command = f"latentseg build {shlex.quote(bundle_spec(bundle))} --target kernels --overwrite"
        raise ArtifactError(str(error), hint=command) from None
