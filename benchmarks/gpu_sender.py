"""The sender's frames a second: 1080p through the compressor on the GPU and the entropy coder on the CPU's cores."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bitstream import StreamHeader
from ..engine.backends.base import usable_cores
from ..engine.bundle import load_bundle
from ..engine.roles import Compressor
from ..engine.run import Work
from ..errors import VerificationError
from ..export.verify import synthetic_frames
from ..kernels import entropy
from .gpu_checks_sender import SYMBOLS
from .gpu_engines import Workshop
from .gpu_parts import RAN, OnRow, Row, judged
from .gpu_timing import LEAST_BATCHES, MOST_BATCHES, how_many
from .measure import spread, undisturbed

if TYPE_CHECKING:
    from ..engine.tensorrt.sender import FusedCompressor
    from .gpu_measure import Plan

SIZE, FRAMES = (1080, 1920), 8
SLOTS = 3
REAL_TIME = 30.0  # frames/s


def measure_sender(plan: Plan, part: str, flavour: str, folder: Path, on_row: OnRow) -> None:
    """A row for each batch size."""
    bundle = load_bundle(plan.bundle)
    frames = synthetic_frames(FRAMES, *SIZE)
    header = bundle.header(*SIZE)
    with Compressor(bundle) as compressor:
        expected = [compressor.encode(frame[None], header)[0] for frame in frames]
    for batch in plan.batches:
        row: Row = {
            "kind": "sender", "part": part, "bundle": bundle.name, "flavour": flavour, "source": "synthetic",
            "frame_size": list(SIZE), "frames": FRAMES, "batch": batch, "precision": "fp32",
        }  # fmt: skip
        try:
            shop = Workshop(bundle, flavour, folder.with_name(f"{folder.name}-{batch}"), SIZE, batch, ())
            shop.engine("compressor", "fp32")
            on_row({**row, "result": RAN, **_measured(plan, shop, header, batch, frames, expected)})
        except Exception as error:
            result, detail = judged(error)
            on_row({**row, "result": result, "detail": detail})


def _measured(
    plan: Plan, shop: Workshop, header: StreamHeader, batch: int, frames: NDArray[np.uint8], expected: Sequence[bytes]
) -> dict[str, Any]:
    from ..engine.tensorrt.sender import FusedCompressor

    threads = usable_cores()
    with FusedCompressor(shop.bundle, header, SIZE, batch, SLOTS, threads) as sender:
        # The first batches of a slot are not replayed yet.
        turns = -(-4 * SLOTS * batch // FRAMES)
        found = [work.payload for work in sender.run(_works(frames, turns * FRAMES))]
        share = min(
            same_symbols(payload, expected[place % FRAMES], header) for place, payload in enumerate(found)
        )  # fmt: skip
        if share < SYMBOLS:
            raise VerificationError(f"{share:.4%} of the symbols are the CPU's, expected at least {SYMBOLS:.1%}")
        first = _pass(sender, frames, LEAST_BATCHES * batch) / LEAST_BATCHES
        count = how_many(first, plan.seconds, LEAST_BATCHES, MOST_BATCHES) * batch
        passes, cpu = [], []
        for _ in range(plan.rounds):
            before = time.process_time()
            passes.append(_pass(sender, frames, count))
            cpu.append(1e3 * (time.process_time() - before) / count)
        return {
            "provider": sender.provider,
            "frames_per_second": spread([count / seconds for seconds in passes]),
            "rounds": plan.rounds,
            "frames_per_round": count,
            "cpu_ms_per_frame": spread(cpu)["median"],
            "symbols_equal": share,
            "bytes_per_frame": sum(map(len, found)) / len(found),
            "real_time": REAL_TIME,
            "engines": shop.facts([("compressor", "fp32")]),
            "detail": {"encoder_threads": threads, "batches_under_way": SLOTS},
        }


def same_symbols(payload: bytes, expected: bytes, header: StreamHeader) -> float:
    """Share of equal symbols of two payloads; a latent on a rounding boundary may fall on either side of it."""
    return float(
        (entropy.decode_symbols(payload, header) == entropy.decode_symbols(expected, header)).mean()
    )  # fmt: skip


def _works(frames: NDArray[np.uint8], count: int) -> Iterator[Work]:
    return (Work(number, 0, rgb=frames[number % len(frames)]) for number in range(count))


def _pass(sender: FusedCompressor, frames: NDArray[np.uint8], count: int) -> float:
    with undisturbed():
        start = time.perf_counter()
        deque(sender.run(_works(frames, count)), maxlen=0)
        return time.perf_counter() - start
