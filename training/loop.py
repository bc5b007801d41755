"""The training loop that codec and segmenter share: seeding, schedule, averaging, checkpoints, progress, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import ArtifactError, InputError, OutputError, UsageError
from . import checkpoint
from .device import Batch, ahead, native_bfloat16, worker_count

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step", "poly")
# How a run is computed, which may be another way when it is resumed.
_HOW = frozenset({"threads", "device", "workers"})
# What runs did before there was a choice; their stored settings do not say so.
_BEFORE = {"optimizer": "adamw", "schedule": "cosine", "decay_at": []}


@dataclass(frozen=True)
class Part:
    """A module of a run that has its own pace: its share of the learning rate, its weight decay, its own clipping.

    start: the step from which it learns. From there it warms up on its own, as the run does from step 0.
    """

    module: nn.Module
    weight_decay: float
    lr_share: float = 1.0
    start: int = 0


@dataclass(frozen=True)
class LoopConfig:
    """What every run has.

    optimizer: "adamw", or "sgd" with momentum 0.9.
    schedule: of the learning rate behind a linear warm-up: "cosine" to `final_lr_share` of the peak, "step" (a tenth at
        each of `decay_at`, shares of the run), or "poly" ((1 - progress) ** 0.9, as in DeepLab).
    clip_norm: the longest gradient of a part that is taken as it is.
    bf16: bfloat16 autocast. None: where the device has instructions for it, and in a resumed run as it was begun; `Run`
        settles it.
    threads: of torch on the CPU, 0 for all cores.  device: torch's name of where the steps are taken.
    workers: threads that make batches ahead of their steps, see `device.worker_count`.
    """

    steps: int
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 200
    final_lr_share: float = 0.01
    ema: float = 0.999
    clip_norm: float = 1.0
    interval: int = 200
    bf16: bool | None = None
    threads: int = 0
    device: str = "cpu"
    workers: int | None = None
    optimizer: str = "adamw"
    schedule: str = "cosine"
    decay_at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} '{getattr(self, name)}', expected one of {', '.join(known)}")
        if bool(self.decay_at) != (self.schedule == "step"):
            raise UsageError(
                f"schedule '{self.schedule}' with {len(self.decay_at)} decay(s)",
                hint="--decay-at goes with --schedule step, and only with it",
            )
        if not all(a < b for a, b in pairwise((0.0, *self.decay_at, 1.0))):
            raise UsageError(f"decays at {list(self.decay_at)} of the run, expected rising shares between 0 and 1")
        if not 0 < self.clip_norm < math.inf:
            raise UsageError(f"gradients clipped to {self.clip_norm}, expected a finite number above 0")
        for name, least in (("steps", 1), ("interval", 1), ("warmup", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers is {self.workers}, expected at least 0")
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise UsageError(
                f"learning rate {self.lr} and weight decay {self.weight_decay}, expected finite numbers, the first "
                "above 0 and the second not below"
            )


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one step's batch: a function of seed and step, so resuming needs no stored state."""
    return np.random.default_rng([seed, step])


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "step":
        passed = sum(step >= share * config.steps for share in config.decay_at)
        return float(config.lr * 0.1**passed)
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    if config.schedule == "poly":
        return float(config.lr * (1 - progress) ** 0.9)
    share = config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * share


def warm(config: LoopConfig, step: int, start: int) -> float:
    """How far a part that learns from step `start` is warmed up: 0 before it, 1 behind its warm-up."""
    if not start:
        return 1.0  # the run's own schedule has the warm-up
    return min(1.0, max(0, step - start + 1) / max(1, config.warmup))


def _groups(part: Part) -> list[dict[str, Any]]:
    """A part's parameters for the optimizer: weight decay acts on the weights, not on biases and norms."""
    trained = [p for p in part.module.parameters() if p.requires_grad]
    pace = {"share": part.lr_share, "start": part.start}
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": part.weight_decay, **pace},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, **pace},
    ]


def _optimizer(config: LoopConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr)


def _differences(found: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs between a run's stored settings and the ones asked for, leaf by leaf."""
    for key in sorted(found.keys() | expected.keys()):
        a, b = found.get(key), expected.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key} ")
        elif a != b:
            yield f"{prefix}{key} was {a!r}, asked for {b!r}"


class Run:
    """One training run in a folder: `state.safetensors` (resume), `log.jsonl`, and at the end `model.safetensors`.

    Parameters
    ----------
    folder: made if missing. An existing state needs `resume=True`, and the same settings but for device and threads.
    network, options: what the weights are of (registry).
    module: the network that is trained and averaged; it is moved to the device.
    parts: its modules, where they are to learn at different paces; by default the module is one part.
    settings: everything that decides the result; stored, and compared on resume.
    extra: scalars of the trainer's own that must survive a resume (a rate controller, say).
    """

    def __init__(
        self,
        folder: Path,
        network: str,
        options: dict[str, Any],
        module: nn.Module,
        config: LoopConfig,
        settings: dict[str, Any],
        *,
        resume: bool = False,
        extra: dict[str, float] | None = None,
        parts: Sequence[Part] | None = None,
    ) -> None:
        self.folder, self.network, self.options, self.module, self.config = folder, network, options, module, config
        self._settings = settings
        self.device = torch.device(config.device)
        module.to(self.device)
        self.extra = dict(extra or {})
        self.parts = parts or [Part(module, config.weight_decay)]
        groups = [group for part in self.parts for group in _groups(part)]
        self.optimizer = _optimizer(config, groups)
        self.average = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.step = 0
        self.seconds = 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UsageError(
                f"{folder} is a file, expected a folder for the run", hint="choose another --out"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot make the run's folder {folder}: {error.strerror or error}") from error
        if self.state_path.exists():
            if not resume:
                raise UsageError(f"{folder} already holds a run", hint="add --resume to go on, or choose another --out")
            self._restore()
        elif resume:
            raise InputError(f"nothing to resume in {folder}", hint="leave --resume out to start a run there")
        else:
            self._settle(native_bfloat16(self.device))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the result."""
        return {**self._settings, "loop": {k: v for k, v in asdict(self.config).items() if k not in _HOW}}

    @property
    def bf16(self) -> bool:
        """Whether the run's steps are to be taken under bfloat16 autocast."""
        return bool(self.config.bf16)

    def place(self, *tensors: Tensor) -> list[Tensor]:
        """A batch's tensors on the run's device."""
        return [tensor.to(self.device, non_blocking=True) for tensor in tensors]

    def _settle(self, bf16: bool) -> None:
        if self.config.bf16 is None:
            self.config = replace(self.config, bf16=bf16)

    @property
    def state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def _restore(self) -> None:
        tensors, metadata = checkpoint.load(self.state_path)
        found = metadata["settings"]
        found["loop"] = {**_BEFORE, **found["loop"]}
        self._settle(found["loop"]["bf16"])
        differing = list(_differences(found, json.loads(json.dumps(self.settings))))
        if differing:
            raise ArtifactError(
                f"the run in {self.folder} was started with other settings: {'; '.join(differing)}",
                hint="repeat the options of the first call, or choose another --out",
            )
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        checkpoint.fill(self.module, model, f"the run in {self.folder}", self.network)
        average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
        self.average = {name: value.to(self.device) for name, value in average.items()}
        checkpoint.restore_optimizer(
            self.optimizer, {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        )
        self.step, self.seconds, self.extra = metadata["step"], metadata["seconds"], metadata["extra"]

    def save_state(self) -> None:
        """Write the resume state, atomically."""
        tensors = {f"model.{k}": v for k, v in self.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        tensors |= {f"optimizer.{k}": v for k, v in checkpoint.flatten_optimizer(self.optimizer).items()}
        facts = {"step": self.step, "seconds": self.seconds, "settings": self.settings, "extra": self.extra}
        checkpoint.save(self.state_path, tensors, facts)

    def _average_in(self) -> None:
        # Early on the average must forget the start, so its horizon grows with the step.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                kept = self.average[name]
                if kept.dtype.is_floating_point:
                    kept.lerp_(value.detach(), 1 - decay)
                else:
                    kept.copy_(value)

    def train(
        self,
        batch: Callable[[int], Batch],
        losses: Callable[[int, Batch], tuple[Tensor, dict[str, float]]],
        *,
        progress: bool = True,
    ) -> None:
        """Run to the last step; `losses(step, batch(step))` gives the loss and figures to log.

        batch: makes what a step learns from, on the CPU and perhaps ahead, in a thread: a function of the step alone.
        """
        workers = worker_count(self.config.workers, self.device)
        if self.config.threads or self.device.type != "cpu":
            # Beside a GPU the CPU has the batches to make, a thread each.
            torch.set_num_threads(self.config.threads or 1)
        self.module.train()
        log = (self.folder / "log.jsonl").open("a")
        bar = tqdm(total=self.config.steps, initial=self.step, disable=not progress, unit="step", mininterval=2.0)
        started = time.perf_counter() - self.seconds
        seen: dict[str, list[float]] = {}  # since the last row; not every step has every figure
        batches = ahead(batch, self.step, self.config.steps, workers)
        try:
            for made in batches:
                for group in self.optimizer.param_groups:
                    share = group["share"] * warm(self.config, self.step, group["start"])
                    group["lr"] = learning_rate(self.config, self.step) * share
                torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout, too, is a function of the step
                loss, figures = losses(self.step, made)
                value = loss.item()
                if not math.isfinite(value):
                    raise ArtifactError(
                        f"the loss is {value} at step {self.step}",
                        hint="start again with a lower --lr and another --out: resumed, a run repeats the same steps",
                    )
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                for part in self.parts:
                    nn.utils.clip_grad_norm_(part.module.parameters(), self.config.clip_norm)
                self.optimizer.step()
                self.step += 1
                self._average_in()
                for name, figure in {"loss": value, **figures}.items():
                    seen.setdefault(name, []).append(figure)
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix({k: f"{math.fsum(v) / len(v):.4g}" for k, v in seen.items()}, refresh=False)
                if self.step % self.config.interval == 0 or self.step == self.config.steps:
                    self.seconds = time.perf_counter() - started
                    row = {
                        "step": self.step,
                        "seconds": round(self.seconds, 1),
                        "lr": learning_rate(self.config, self.step),
                    }
                    log.write(json.dumps(row | {k: math.fsum(v) / len(v) for k, v in seen.items()}) + "\n")
                    log.flush()
                    self.save_state()
                    seen = {}
        finally:
            batches.close()
            bar.close()
            log.close()

    def save_weights(self) -> Path:
        """Write the averaged weights as the run's result, and return their path."""
        return self.save_part("", self.folder, self.network, self.options)

    def save_part(
        self, prefix: str, folder: Path, network: str, options: dict[str, Any], more: dict[str, Any] | None = None
    ) -> Path:
        """Write the averaged weights under `prefix` as a network of their own, and return their path.

        more: settings that are known only now, stored beside the run's.
        """
        path = folder / "model.safetensors"
        tensors = {k.removeprefix(prefix): v for k, v in self.average.items() if k.startswith(prefix)}
        settings = {**self.settings, **(more or {})}
        facts = {"settings": settings, "steps": self.step, "seconds": round(self.seconds, 1), **self.extra}
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(path, network, options, tensors, facts)
        return path
