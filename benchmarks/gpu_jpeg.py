"""JPEG through DALI to labels, the baseline at its best: no Python between images, and a choice of DALI's settings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count as counting
from typing import Any

import numpy as np

from ..engine.backends.base import usable_cores
from ..engine.sources.dali.batches import padded
from ..engine.sources.dali.pipe import DaliError, Fed, Pipe, load_dali, pad
from ..errors import InputError, VerificationError
from .gpu_arms import SAMPLES, SLOTS, GpuArm, Labels, open_engines
from .gpu_chain import FrameSlot
from .gpu_engines import Workshop

GPU: int | None = 0  # the first one, as everything else here
AHEAD = 3  # batches that are decoded ahead
_TUNED = 40  # batches that a setting is timed on
Check = Callable[[Iterator[Labels]], float]  # agreement of batches from the first on; raises below the limit


@dataclass(frozen=True)
class Setting:
    """How DALI decodes. hardware_share: its `hw_decoder_load`.  fancy_upsampling: chroma as libjpeg interpolates it."""

    hardware_share: float
    fancy_upsampling: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# DALI's default share and its largest sensible one (docs/dali.md); what of them is faster hangs on the GPU's engines.
CANDIDATES = tuple(Setting(share, fancy) for share in (0.65, 0.9) for fancy in (True, False))


@dataclass(frozen=True)
class Decoded:
    """A batch. address: of its first byte on the device.  tensor: DALI's own, which owns the memory."""

    address: int
    tensor: Any


class JpegDecoder:
    """Batches of JPEGs of one size, taken round and round, to uint8 (batch, H', W', 3) padded to the stride.

    depth: batches under way; 1: a batch is begun when it is asked for, and nothing is decoded ahead.
    Raises BackendMissingError without DALI or a GPU.
    """

    def __init__(
        self,
        images: Sequence[bytes],
        batch: int,
        size: tuple[int, int],
        stride: int,
        setting: Setting,
        depth: int = AHEAD,
    ) -> None:
        self._images = [np.frombuffer(image, np.uint8) for image in images]
        self.batch, self.shape = batch, (batch, *padded(size, stride), 3)
        height, width = size
        only_gpu = {
            "hw_decoder_load": setting.hardware_share,
            "preallocate_height_hint": height,
            "preallocate_width_hint": width,
            "jpeg_fancy_upsampling": setting.fancy_upsampling,
        }

        def define(jpegs: Any) -> list[Any]:
            dali = load_dali()
            frames = dali.fn.decoders.image(
                jpegs,
                device="cpu" if GPU is None else "mixed",
                output_type=dali.types.RGB,
                adjust_orientation=False,
                **({} if GPU is None else only_gpu),
            )
            return [pad(frames, size, stride, axis=0)]

        threads = usable_cores()
        self.threads = threads
        self._pipe: Pipe[int] = Pipe(define, batch, GPU, threads, depth)

    def batches(self, count: int | None = None, first: int = 0) -> Generator[Decoded]:
        """So many batches, or without end, from batch `first` on; each is ready when it is given.

        Nothing is begun before the first is asked for, and nothing is under way behind the last.
        Raises InputError where DALI fails.
        """
        numbers = counting(first) if count is None else range(first, first + count)
        try:
            for _, outputs in self._pipe.run(self._fed(number) for number in numbers):
                tensor = outputs[0].as_tensor()
                yield Decoded(int(tensor.data_ptr()), tensor)
        except DaliError as error:
            raise InputError(f"DALI does not decode a batch of {self.batch} JPEGs: {error}") from error

    def close(self) -> None:
        """Free the pipeline; may be called twice."""
        self._pipe.close()

    def _fed(self, number: int) -> Fed[int]:
        total = len(self._images)
        return number, [self._images[(number * self.batch + place) % total] for place in range(self.batch)]


class JpegArm(GpuArm):
    """JPEG bytes, DALI's `mixed` decoder, one copy on the device, the RGB segmenter."""

    def __init__(
        self, name: str, shop: Workshop, items: Sequence[bytes], batch: int, size: tuple[int, int], precision: str
    ) -> None:
        super().__init__(items, batch, size)
        self.name = name
        self._stride = shop.bundle.codec.stride
        self._slots: list[FrameSlot] = []
        self._single: JpegDecoder | None = None
        self._open(CANDIDATES[0])  # what DALI lacks shows before an engine is built
        try:
            path = shop.engine("rgb_segmenter", precision)
            self._device, (loaded,) = open_engines(self._stack, [path])
            self.provider = loaded.provider
            self._stack.callback(self._forget)
            with self._device.active():
                for _ in range(SLOTS):
                    self._slots.append(FrameSlot(self._device, loaded, self._ahead.shape))
        except BaseException:
            self.close()
            raise

    def tune(self, check: Check) -> float:
        """Take the fastest of DALI's settings whose labels are right; their agreement.

        Raises VerificationError where none is right.
        """
        tried: list[dict[str, Any]] = []
        batches = -(-2 * len(self.items) // self.batch)
        for setting in CANDIDATES:
            self.use(setting)
            entry: dict[str, Any] = setting.to_dict()
            try:
                entry["agreement"] = check(self.run(batches))
                start = time.perf_counter()
                deque(self.run(_TUNED), maxlen=0)
                entry["frames_per_second"] = _TUNED * self.batch / (time.perf_counter() - start)
            except VerificationError as error:
                entry["error"] = str(error)
            tried.append(entry)
        best = fastest(tried)
        if best is None:
            raise VerificationError(f"{self.name}: {tried[0]['error']}")
        self.use(CANDIDATES[best])
        self.detail |= {"decoder": CANDIDATES[best].to_dict(), "ahead": AHEAD, "tried": tried}
        return float(tried[best]["agreement"])

    def use(self, setting: Setting) -> None:
        """Decode in this way from now on."""
        with self._device.active():
            for slot in self._slots:
                slot.wait()
        self._close_decoders()
        self._open(setting)

    def run(self, count: int) -> Iterator[Labels]:
        free, flying = deque(self._slots), deque[tuple[FrameSlot, Decoded]]()
        for decoded in self._ahead.batches(count):
            if not free:
                slot, _ = flying.popleft()
                yield self._collect(slot)
                free.append(slot)
            self._start(free[0], decoded)
            flying.append((free.popleft(), decoded))
        while flying:
            slot, _ = flying.popleft()  # the frames stay until they were copied
            yield self._collect(slot)

    def singles(self, count: int) -> Iterator[float]:
        slot = self._slots[0]
        with closing(self._alone.batches(count + 1)) as batches:
            decoded = next(batches)  # the pipeline's start is no batch's
            self._start(slot, decoded)
            self._collect(slot)
            for _ in range(count):
                start = time.perf_counter()
                decoded = next(batches)
                self._start(slot, decoded)
                self._collect(slot)
                yield time.perf_counter() - start
            _to_the_end(batches)

    def host(self) -> list[dict[str, float]]:
        """What Python does behind the decoder; DALI's own threads are in the process's CPU time."""
        slot, found = self._slots[0], []
        for decoded in self._alone.batches(SAMPLES):
            start = time.perf_counter()
            self._start(slot, decoded)
            submitted = time.perf_counter() - start
            with self._device.active():
                self._device.wait()
            start = time.perf_counter()
            self._collect(slot)
            found.append({"submit": submitted, "collect": time.perf_counter() - start})
        return found

    def stages(self) -> list[dict[str, float]]:
        """Seconds by stage of several batches: decode by the host's clock, alone; what is behind it by events."""
        slot, found = self._slots[0], []
        with closing(self._alone.batches(SAMPLES + 1)) as batches:
            next(batches)
            for _ in range(SAMPLES):
                start = time.perf_counter()
                decoded = next(batches)
                seconds = time.perf_counter() - start
                with self._device.active():
                    found.append({"decode": seconds, **slot.timed(decoded.address)})
            _to_the_end(batches)
        return found

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._close_decoders()

    def _open(self, setting: Setting) -> None:
        self._setting, self._single = setting, None
        self._ahead = JpegDecoder(self.items, self.batch, self.size, self._stride, setting)
        self.detail["decoder_threads"] = self._ahead.threads

    @property
    def _alone(self) -> JpegDecoder:
        """The decoder of one batch at a time, made when it is first wanted: not while settings are tried."""
        if self._single is None:
            self._single = JpegDecoder(self.items, self.batch, self.size, self._stride, self._setting, depth=1)
        return self._single

    def _close_decoders(self) -> None:
        self._ahead.close()
        if self._single is not None:
            self._single.close()

    def _forget(self) -> None:
        with self._device.active():
            for slot in self._slots:
                slot.wait()
                slot.forget()

    def _start(self, slot: FrameSlot, decoded: Decoded) -> None:
        with self._device.active():
            slot.start(decoded.address)

    def _collect(self, slot: FrameSlot) -> Labels:
        with self._device.active():
            labels = slot.finish()
        return self.cropped(labels)


def _to_the_end(batches: Iterator[Decoded]) -> None:
    """Let DALI see the end: a pipeline that was left before it is built anew, and the next run would pay for it."""
    deque(batches, maxlen=0)


def fastest(tried: Sequence[Mapping[str, Any]]) -> int | None:
    """Place of the fastest setting that gave the right labels; None where none did."""
    good = [place for place, entry in enumerate(tried) if "frames_per_second" in entry]
    return max(good, key=lambda place: float(tried[place]["frames_per_second"]), default=None)
