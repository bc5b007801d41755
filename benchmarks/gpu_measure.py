"""The parts of `gpu_suite --measure`: every arm on the GPU by turns, and the sender.

A part is a set of networks on one flavour of TensorRT. Rows: one for each (arm, batch, precision), one for its stages,
one for the sender's batch; each says ran, not available here, or failed, and an arm that cannot run costs the others
nothing. Labels are compared with the CPU engine's before anything is timed.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.bundle import Bundle, load_bundle
from ..engine.tensorrt.execution import open_device
from ..errors import BackendMissingError, LatentsegError, UsageError, VerificationError
from .clips import Clip, load_clip
from .gpu_arms import SLOTS, CompressedArm, GpuArm, LearnedDecodeArm, byte_stages
from .gpu_engines import Workshop, check_flavour, is_memory
from .gpu_jpeg import JpegArm
from .gpu_material import ROLES, Material, synthetic_clip
from .gpu_meters import MIB, Energy, memory_in_use
from .gpu_parts import ABSENT, FAILED, RAN, OnRow, Row, judged, run_part
from .gpu_timing import ArmError, GpuTiming, host_row, ratios, stage_row, time_arms

FLAVOURS = ("tensorrt", "tensorrt-rtx")
SIZE, FRAMES = (720, 960), 32  # of what is measured where no clip is given
FULL_SIZE, FULL_FRAMES = (1024, 2048), 2
REFERENCE = CompressedArm.name


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    bundle: name or path.  clip: a video or folder; "": synthetic frames.  full: folder of the paper's networks
    (`gpu_networks.py`).  seconds: of a pass of the fastest arm.
    """

    bundle: str
    clip: str = ""
    full: Path | None = None
    precisions: tuple[str, ...] = ("fp16", "fp32")
    batches: tuple[int, ...] = (1, 8, 32)
    rounds: int = 7
    seconds: float = 0.5


class Measurement:
    """A plan being carried out: rows go to `on_row`, engines and kernels into `folder`."""

    def __init__(self, plan: Plan, folder: Path, on_row: OnRow) -> None:
        self.plan, self.folder = plan, folder
        self.rows: list[Row] = []
        self._on_row = on_row

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self._on_row(row)

    def summary(self, part: str) -> dict[str, Any]:
        """How many of a part's rows ran. Raises what says best why none did."""
        rows = [row for row in self.rows if row["part"] == part]
        counts = Counter(row["result"] for row in rows)
        if not counts[RAN]:
            reasons = list(dict.fromkeys(row["detail"].get("error") or row["detail"].get("reason") for row in rows))
            said = "; ".join(map(str, reasons[:3]))
            raise VerificationError(said) if counts[FAILED] else BackendMissingError(said)
        return {"rows": ", ".join(f"{counts[kind]} {kind}" for kind in (RAN, ABSENT, FAILED) if counts[kind])}


def shipped(run: Measurement, part: str, flavour: str) -> dict[str, Any]:
    """The plan's bundle on its clip."""
    found = check_flavour(flavour)
    bundle = load_bundle(run.plan.bundle)
    clip = load_clip(run.plan.clip, frames=FRAMES) if run.plan.clip else synthetic_clip(FRAMES, SIZE)
    segmenters(run, part, flavour, bundle, clip)
    return {**found, **run.summary(part)}


def full(run: Measurement, part: str, flavour: str) -> dict[str, Any]:
    """The paper's networks at 1024x2048, for speed."""
    if run.plan.full is None:
        raise BackendMissingError(
            "the paper's networks were not given",
            hint="python -m latentseg.benchmarks.gpu_networks DIR, then --full DIR",
        )
    found = check_flavour(flavour)
    segmenters(run, part, flavour, load_bundle(run.plan.full), synthetic_clip(FULL_FRAMES, FULL_SIZE))
    return {**found, **run.summary(part)}


def sender(run: Measurement, part: str, flavour: str) -> dict[str, Any]:
    """Frames of 1080p to payloads."""
    from .gpu_sender import measure_sender

    found = check_flavour(flavour)
    measure_sender(run.plan, part, flavour, run.folder / part, run.add)
    return {**found, **run.summary(part)}


def segmenters(run: Measurement, part: str, flavour: str, bundle: Bundle, clip: Clip) -> None:
    """Rows of every arm of a bundle, at each batch size and precision."""
    material = Material(bundle, clip)
    energy = Energy()
    for batch in run.plan.batches:
        shop = Workshop(bundle, flavour, run.folder / f"{part}-{batch}", clip.size, batch, clip.frames)
        for precision in run.plan.precisions:
            common = {
                "part": part, "bundle": bundle.name, "weights": material.weights, "flavour": flavour,
                "source": clip.name, "frame_size": list(clip.size), "frames": len(clip.frames),
                "batch": batch, "precision": precision, "codec_precision": "fp32",
            }  # fmt: skip
            _Row(run, common, material, shop, energy).measure()


class _Row:
    """The arms of one batch size and precision."""

    def __init__(
        self, run: Measurement, common: Row, material: Material, shop: Workshop, energy: Energy
    ) -> None:  # fmt: skip
        self._run, self._common, self._material, self._shop, self._energy = run, common, material, shop, energy
        self._batch, self._precision = int(common["batch"]), str(common["precision"])

    def measure(self) -> None:
        with ExitStack() as stack:
            try:
                device = stack.enter_context(open_device())
            except LatentsegError as error:
                self._failed(ROLES, error)
                return
            self._open_and_close()
            arms: dict[str, GpuArm] = {}
            facts: dict[str, Row] = {}
            for name in ROLES:
                try:
                    before = memory_in_use(device)
                    arm, agreement = self._open(name)
                    arms[name] = stack.enter_context(arm)
                    facts[name] = {"agreement": agreement, "gpu_memory_mib": (memory_in_use(device) - before) / MIB}
                    deque(arm.singles(1), maxlen=0)  # what latency alone wants is made here, and is in no arm's memory
                except Exception as error:
                    self._drop(arms, name, error)
            timings = self._timed(arms)
            stages: dict[str, list[dict[str, float]] | Exception] = {}
            for name, arm in list(arms.items()):
                try:
                    facts[name]["host_ms"] = host_row(arm.host())
                except Exception as error:
                    self._drop(arms, name, error)
                    continue
                if isinstance(arm, JpegArm):
                    stages[name] = _stages_of(arm)
            over = ratios({name: timings[name] for name in arms}, REFERENCE)
            for name, arm in arms.items():
                self._ran(name, arm, timings[name], facts[name], over[name])
        for name in arms:
            self._stages(name, stages.get(name))

    def _open_and_close(self) -> None:
        """What TensorRT and CUDA load once would otherwise be in the memory of the arm that is opened first."""
        with suppress(Exception), self._made(REFERENCE) as arm:  # should it fail, the arm that is kept says why
            deque(arm.run(2 * SLOTS), maxlen=0)

    def _timed(self, arms: dict[str, GpuArm]) -> dict[str, GpuTiming]:
        """The arms' times. One that fails is dropped, and the rest is timed again: rounds are of all arms alike."""
        joules = None if self._energy.reason else self._energy.joules
        plan = self._run.plan
        while arms:
            try:
                return time_arms(arms, self._batch, rounds=plan.rounds, seconds=plan.seconds, joules=joules)
            except ArmError as error:
                self._drop(arms, error.name, error.error)
            except Exception as error:  # the counter of energy
                for name in list(arms):
                    self._drop(arms, name, error)
        return {}

    def _drop(self, arms: dict[str, GpuArm], name: str, error: Exception) -> None:
        """Close an arm that failed, and say so."""
        arm = arms.pop(name, None)
        if arm is not None:
            with suppress(Exception):  # what broke it is what is said
                arm.close()
        self._failed([name], error)

    def _open(self, name: str) -> tuple[GpuArm, float]:
        """An arm whose labels are right, and their agreement with the CPU's."""
        arm, batch = self._made(name), self._batch
        try:
            check = self._material.check(name, self._precision, batch)
            if isinstance(arm, JpegArm):
                return arm, arm.tune(check)
            # Every slot has each of the clip's batches at least twice: run as it is, captured, replayed.
            return arm, check(arm.run(3 * SLOTS * (math.lcm(len(arm.items), batch) // batch)))
        except BaseException:
            arm.close()
            raise

    def _made(self, name: str) -> GpuArm:
        lacking = [role for role in ROLES[name] if role not in self._material.bundle.roles]
        if lacking:
            raise BackendMissingError(f"the bundle has no {' and no '.join(lacking)}")
        size, batch, precision = self._material.size, self._batch, self._precision
        items = self._material.sent(name).payloads
        if name == CompressedArm.name:
            return CompressedArm(self._shop, self._material.header, items, batch, size, precision)
        if name == LearnedDecodeArm.name:
            return LearnedDecodeArm(self._shop, self._material.header, items, batch, size, precision)
        return JpegArm(name, self._shop, items, batch, size, precision)

    def _needed(self, name: str) -> list[tuple[str, str]]:
        return [(role, "fp32" if role == "decompressor" else self._precision) for role in ROLES[name]]

    def _ran(self, name: str, arm: GpuArm, timing: GpuTiming, facts: Row, over: dict[str, Any] | None) -> None:
        energy = {} if timing.joules else {"joules_per_frame": f"not readable: {self._energy.reason}"}
        self._run.add(
            {
                **self._common, "kind": "arm", "arm": name, "result": RAN, "provider": arm.provider,
                **timing.row(), **energy, "time_over_compressed": over, **facts, **self._material.rate(name),
                "engines": self._shop.facts(self._needed(name)), "detail": arm.detail,
            }
        )  # fmt: skip

    def _stages(self, name: str, samples: list[dict[str, float]] | Exception | None) -> None:
        row = {**self._common, "kind": "stages", "arm": name}
        how = "decode: host's clock, the batch alone; the others: CUDA events, no graph"
        try:
            if isinstance(samples, Exception):
                raise samples
            if samples is None:
                sent = self._material.sent(name).payloads
                samples = byte_stages(self._shop, self._material.header, sent, self._batch, self._needed(name))
                how = "CUDA events, no graph"
            self._run.add({**row, "result": RAN, **stage_row(samples), "detail": {"how": how}})
        except Exception as error:
            result, detail = _judged(error)
            self._run.add({**row, "result": result, "detail": detail})

    def _failed(self, names: Sequence[str] | Mapping[str, Any], error: Exception) -> None:
        result, detail = _judged(error)
        for name in names:
            self._run.add({**self._common, "kind": "arm", "arm": name, "result": result, "detail": detail})


def _stages_of(arm: JpegArm) -> list[dict[str, float]] | Exception:
    try:
        return arm.stages()
    except Exception as error:  # the arm was timed: its stages alone are lost
        return error.with_traceback(None)  # its frames would hold what is closed before the row is written


def _judged(error: Exception) -> tuple[str, dict[str, Any]]:
    if isinstance(error, LatentsegError) and is_memory(error):
        return ABSENT, {"reason": f"too little GPU memory: {error}", "hint": error.hint}
    return judged(error)


@dataclass(frozen=True)
class Part:
    """body: measures, and gives the part's detail.  needs: parts of the check that must not have failed."""

    body: Callable[[Measurement, str], dict[str, Any]]
    needs: tuple[str, ...]


def _parts() -> dict[str, Part]:
    found = {}
    for name, body, needs in (
        ("measure", shipped, ("decode-pycuda", "graph")),
        ("full", full, ("decode-pycuda", "graph")),
        ("sender", sender, ("decode-pycuda", "graph", "quantize", "sender")),
    ):
        for flavour in FLAVOURS:
            found[f"{name}-{flavour}"] = Part(partial(_with_flavour, body, flavour), (*needs, flavour))
    return found


def _with_flavour(
    body: Callable[[Measurement, str, str], dict[str, Any]], flavour: str, run: Measurement, part: str
) -> dict[str, Any]:
    return body(run, part, flavour)


PARTS = _parts()


def measure(plan: Plan, names: Sequence[str], checked: Mapping[str, str], on_row: OnRow) -> list[Row]:
    """Run the parts in order; every row is handed to `on_row` as it comes, the part's own behind its arms'.

    checked: result of each part of the check that was made before; where one that a part needs did not run, the part is
    not measured, and its row says so. Raises UsageError for an unknown part.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UsageError(f"no part '{unknown[0]}'", hint=f"parts: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        run = Measurement(plan, Path(folder), on_row)
        for name in names or PARTS:
            run.add({**run_part(name, partial(_part, run, name, checked)), "kind": "part"})
    return run.rows


def _part(run: Measurement, name: str, checked: Mapping[str, str]) -> dict[str, Any]:
    for need in PARTS[name].needs:
        result = checked.get(need, RAN)
        if result == FAILED:
            raise VerificationError(f"not measured: its check '{need}' failed")
        if result == ABSENT:
            raise BackendMissingError(f"not measured: its check '{need}' was not available here")
    return PARTS[name].body(run, name)
