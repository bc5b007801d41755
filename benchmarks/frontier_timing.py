"""CPU time of each series of `frontier.py`: from bytes in memory to labels, the series in turn, one frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..engine.placement import Placement
from .frontier_arms import Arm, Coded, Frame, Learned, Source, labeller
from .measure import StageClock, measure

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

Step = tuple[str | None, Callable[[Any], Any]]


class Chain:
    """Frames as they travel through `steps`, each with the name of its stage, to labels."""

    def __init__(self, steps: Sequence[Step], coded: Sequence[Coded]) -> None:
        self._steps, self._coded = steps, coded

    def start(self, batch: int) -> None:
        """Nothing is kept between frames."""

    def run(self, first: int, last: int, clock: StageClock) -> Any:
        value: Any = None
        for coded in self._coded[first:last]:
            value = coded
            for stage, step in self._steps:
                if stage is None:
                    value = step(value)
                    continue
                with clock.stage(stage):
                    value = step(value)
        return value


def torch_steps(source: Source, arm: Arm, size: tuple[int, int]) -> list[Step]:
    """What the receiver does to a frame of an arm, in torch."""
    assert arm.network is not None
    latent = arm.spec.way == "latent"
    label = labeller(arm.network.net, not latent)
    steps: list[Step] = [(_receiving(source), source.receive)]
    if isinstance(source, Learned) and not latent:
        steps.append(("decode", lambda received: source.picture(received, size)))
    return [*steps, ("segment", lambda received: label(received, size))]


def bundle_steps(source: Source, arm: Arm, size: tuple[int, int], roles: dict[str, Any]) -> list[Step] | None:
    """The same through the engine's roles; None where the bundle has another network than the arm, or none."""
    latent = arm.spec.way == "latent"
    segmenter = roles.get("segmenter" if latent else "rgb_segmenter")
    if segmenter is None or not _of(segmenter.bundle, segmenter.role, arm.network):
        return None
    steps: list[Step] = [(_receiving(source), source.receive)]
    if isinstance(source, Learned):
        if not _of(segmenter.bundle, "codec", arm.codec):
            return None
        if latent:
            return [*steps, ("segment", lambda z: segmenter.labels(z[None], size))]
        decompressor = roles.get("decompressor")
        if decompressor is None:
            return None
        return [
            *steps,
            ("decode", lambda z: decompressor.frames(z[None], size)),
            ("segment", segmenter.labels),
        ]
    return [*steps, ("segment", lambda frame: segmenter.labels(frame[None]))]


def _receiving(source: Source) -> str | None:
    """The stage of `receive`; None of originals, which are there."""
    if isinstance(source, Learned):
        return "entropy_decode"
    return None if source.level is None else "decode"


def _of(bundle: Bundle, role: str, part: Any) -> bool:
    """Whether a role of a bundle was exported from this very network."""
    noted = bundle.manifest.get("training", {}).get(role)
    return part is not None and isinstance(noted, dict) and noted.get("id") == part.id


def time_arms(
    chosen: Sequence[tuple[Source, Arm]],
    frames: Sequence[Frame],
    *,
    threads: int,
    rounds: int = 3,
    bundles: Sequence[Bundle] = (),
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """The time of each arm at its source's level over `frames`, which have one size: through ONNX Runtime where a
    bundle has its networks, else through torch.

    Returns for each: `backend`, `threads`, and what `Timing.summary` says (batch 1, milliseconds). torch has to have
    been told the threads. note: called with the arms that no bundle has, where there are bundles.
    """
    from ..engine.roles import Decompressor, RgbSegmenter, Segmenter

    size = (frames[0].shape[0], frames[0].shape[1])
    chains, backends = {}, []
    coded: dict[int, list[Coded]] = {}
    with ExitStack() as stack:
        opened = [
            {
                kind.role: stack.enter_context(kind(bundle, Placement(threads=threads)))
                for kind in (Segmenter, RgbSegmenter, Decompressor)
                if kind.role in bundle.roles
            }
            for bundle in bundles
        ]
        for index, (source, arm) in enumerate(chosen):
            if id(source) not in coded:
                coded[id(source)] = [source.encode(frame) for frame in frames]
            found = (bundle_steps(source, arm, size, roles) for roles in opened)
            steps = next((steps for steps in found if steps is not None), None)
            backends.append("torch" if steps is None else "onnxruntime")
            if bundles and steps is None:
                note(f"{arm.spec.way} {arm.spec.name}: in none of the bundles, timed through torch")
            chains[str(index)] = Chain(steps or torch_steps(source, arm, size), coded[id(source)])
        timings = measure(chains, len(frames), batch=1, rounds=rounds, warmup=2, seed=0)
    return [
        {"backend": backend, "threads": threads, **timings[str(index)].summary()}
        for index, backend in enumerate(backends)
    ]
