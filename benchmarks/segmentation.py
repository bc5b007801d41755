"""The main measurement: from bytes in memory to label maps or classes, with and without decoding pixels first.

Frames are encoded once, before anything is timed. Then every arm runs over the same frames in the same process, in
interleaved rounds (`measure.py`), one frame at a time and in batches. What comes out is one JSON-ready dict.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.backends.base import usable_cores
from ..engine.placement import Placement
from ..errors import ArtifactError, BackendMissingError, UsageError
from ..kernels.dispatch import native_available
from .arms import (
    ARM_NAMES,
    ARMS,
    H264,
    Answers,
    Arm,
    Compressed,
    JpegAtRate,
    JpegQ95,
    LearnedDecode,
    answers,
    description_of,
    roles_of,
)
from .classification import agreement, check_clip, new_scores
from .clips import Clip
from .costs import frame_macs
from .machine import describe_machine, describe_versions
from .measure import CLASSIFYING_STAGES, STAGES, StageClock, Timing, measure, paired_ratio
from .sender import Sent, read_packets, send_codec, send_jpeg, send_jpeg_near

if TYPE_CHECKING:
    from ..engine.bundle import Bundle
    from .arms import Rgb

SCHEMA = 1
RGB_BITS = 24
Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


def _no_progress(what: str, done: int, total: int) -> None:
    pass


class Setup:
    """The arms, ready to run, with their networks open. A context manager.

    Attributes
    ----------
    arms: those that can run, in the order of `ARMS`. left_out: name and reason of the others. sender: one entry for
    each way of encoding that was needed, with its cost. rgb: the RGB network, or None where the bundle has none.
    stages: the names of the stages that the arms have.
    """

    def __init__(
        self,
        bundle: Bundle,
        clip: Clip,
        names: Sequence[str] = ARM_NAMES,
        placement: Placement = Placement(),  # noqa: B008 (frozen)
        step: float = 1.0,
    ) -> None:
        self._bundle, self._clip, self._step = bundle, clip, step
        self._threads = placement.threads or usable_cores()
        self._placement = replace(placement, threads=self._threads)
        self._stack = ExitStack()
        self.arms: list[Arm] = []
        self.left_out: list[dict[str, str]] = []
        self.sender: list[dict[str, Any]] = []
        self.rgb: Rgb | None = None
        self.stages = CLASSIFYING_STAGES if bundle.classifies else STAGES
        self.provider = ""
        try:
            self._open(names)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Setup:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _role(self, kind: Callable[..., Any]) -> Any:
        return self._stack.enter_context(kind(self._bundle, self._placement))

    def _add(self, arm: Arm) -> None:
        self._stack.callback(arm.close)
        self.arms.append(arm)

    def _sent(self, name: str, sent: Sent) -> Sent:
        self.sender.append({"name": name, "cost": sent.cost(), **sent.detail})
        return sent

    def _open(self, names: Sequence[str]) -> None:
        from ..engine.roles import Classifier, Compressor, Decompressor, RgbClassifier, RgbSegmenter, Segmenter

        bundle, clip, threads = self._bundle, self._clip, self._threads
        latent, rgb = (Classifier, RgbClassifier) if bundle.classifies else (Segmenter, RgbSegmenter)
        header = bundle.header(*clip.size, clip.frame_rate, self._step)
        with Compressor(bundle, self._placement) as compressor:
            self.provider = compressor.backend.provider
            codec = self._sent("codec", send_codec(compressor, header, clip.frames))
        if rgb.role in bundle.roles:
            self.rgb = self._role(rgb)
        for kind in ARMS:
            if kind.name not in names:
                continue
            missing = [role for role in roles_of(kind, bundle.classifies) if role not in bundle.roles]
            if missing or (kind is not Compressed and self.rgb is None):
                self.left_out.append({"name": kind.name, "reason": f"the bundle has no {' and no '.join(missing)}"})
            elif kind is Compressed:
                self._add(Compressed(self._role(latent), header, codec))
            elif self.rgb is None:
                raise AssertionError("every other arm ends in the RGB network")
            elif kind is LearnedDecode:
                self._add(LearnedDecode(self._role(Decompressor), self.rgb, header, codec))
            elif kind is JpegAtRate:
                target = float(np.mean(codec.sizes))
                self._add(JpegAtRate(self.rgb, self._sent("jpeg", send_jpeg_near(clip.frames, target)), threads))
            elif kind is JpegQ95:
                self._add(JpegQ95(self.rgb, self._sent("jpeg-q95", send_jpeg(clip.frames, 95)), threads))
            else:
                self._add_h264(self.rgb)

    def _add_h264(self, rgb: Rgb) -> None:
        reason = ""
        if self._clip.video is None:
            reason = "not applicable: the source is not a video file"
        else:
            packets = read_packets(self._clip.video, len(self._clip.frames))
            if packets.codec != "h264":
                reason = f"not applicable: the video's packets are {packets.codec}"
            elif packets.frames < len(self._clip.frames):
                reason = f"its packets hold {packets.frames} frames, the source gave {len(self._clip.frames)}"
            else:
                arm = H264(rgb, packets, self._threads)
                # An edit list or a damaged packet would make the source's frames others than the packets' own.
                if all(arm.gives(index, frame) for index, frame in enumerate(self._clip.frames)):
                    self._add(arm)
                else:
                    reason = "its packets do not decode to the frames that the source gives"
        if reason:
            self.left_out.append({"name": H264.name, "reason": reason})


def run(
    clip: Clip,
    bundle: Bundle,
    *,
    arms: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8),
    rounds: int = 5,
    warmup: int = 3,
    placement: Placement = Placement(),  # noqa: B008 (frozen)
    seed: int = 0,
    step: float = 1.0,
    progress: Progress = _no_progress,
) -> dict[str, Any]:
    """Measure the arms on a clip and return the result (schema 1), ready for `json.dumps(..., allow_nan=False)`.

    Parameters
    ----------
    arms: names of `ARM_NAMES`; None: all, and those that the source or the bundle does not allow are left out with
    the reason; an arm asked for by name that cannot run is an error. batches: frames a batch; sizes above the number
    of frames are left out with a note. rounds: timed passes of every arm at every batch size. warmup: untimed batches
    before each. placement: what runs the networks; its threads are the JPEG pool's and the video decoder's, too.
    step: of the codec's quantisation; the JPEGs of the codec's size are as large as it makes them.

    Raises
    ------
    UsageError: an unknown arm, an asked-for arm that cannot run, a clip whose truth is of other classes, a step that
    the codec cannot take, or nothing to measure.
    """
    names = check_arms(arms)
    check_clip(clip, bundle)
    fitting = [size for size in dict.fromkeys(batches) if size <= len(clip.frames)]
    too_large = [size for size in dict.fromkeys(batches) if size > len(clip.frames)]
    if not fitting or min(batches) < 1 or rounds < 1 or warmup < 0:
        raise UsageError(
            f"nothing to measure: batches {list(batches)} on {len(clip.frames)} frames, {rounds} rounds, "
            f"{warmup} warm-up batches",
            hint="expected batches of at least 1 and at most the number of frames, and at least 1 round",
        )
    machine = describe_machine()
    progress("encoding", 0, 1)
    with Setup(bundle, clip, names, placement, step) as setup:
        if arms is not None and setup.left_out:
            entry = setup.left_out[0]
            raise UsageError(f"the arm {entry['name']!r} cannot run here: {entry['reason']}")
        if not setup.arms:
            raise ArtifactError(
                f"bundle '{bundle.name}' has only {', '.join(bundle.roles)}, expected a segmenter or a classifier",
                hint="give a bundle with one: latentseg inspect shows what is in one",
            )
        reference = _rgb_answers(setup, clip)
        rows = [_describe(arm, bundle, clip) for arm in setup.arms]
        single = _score_all(setup, rows, clip, bundle, reference, progress)
        ceiling = _ceiling(bundle, clip, reference)
        for size in fitting:
            _time_all(setup, rows, single, size, len(clip.frames), rounds, warmup, seed, progress)
        left_out, sender, provider = setup.left_out, setup.sender, setup.provider
    what = "float32 probabilities of classes" if bundle.classifies else "uint8 labels of the source's size"
    return {
        "schema": SCHEMA,
        "type": "bench",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": describe_versions(),
        "configuration": {
            "task": "classification" if bundle.classifies else "segmentation",
            "source": clip.name,
            "labels": clip.labels_name,
            "frames": len(clip.frames),
            "frame_size": list(clip.size),
            "bundle": {"name": bundle.name, "codec": bundle.codec.name, "codec_id": bundle.codec.id.hex()},
            "step": step,
            "batches": fitting,
            "rounds": rounds,
            "warmup_batches": warmup,
            "threads": placement.threads or usable_cores(),
            "backend": placement.backend,
            "provider": provider,
            "precision": placement.precision,
            "coder": "native" if native_available() else "numpy",
            "seed": seed,
            "order": "one seeded shuffle of the arms, rotated by one place a round",
            "time": f"from bytes in memory to {what}",
        },
        "sender": sender,
        "arms": rows,
        "ceiling": ceiling,
        "left_out": left_out,
        "notes": [
            *clip.notes,
            *([] if step == 1 else [f"the codec's quantisation step is {step:g}"]),
            *_remarks(rows),
            *(f"batch {size} left out: {len(clip.frames)} frames" for size in too_large),
        ],
    }


def _remarks(rows: list[dict[str, Any]]) -> list[str]:
    """What a reader must know beside the numbers."""
    remarks = []
    if any(row["macs_per_frame"] is None for row in rows):
        remarks.append("MACs left out: to count a classifier's needs the package onnx")
    for row in rows:
        detail = row["detail"]
        if "quality" in detail:
            missed = "" if detail.get("reached", True) else ", the nearest that JPEG has to the codec's size"
            setting = f"quality {detail['quality']}, {detail['subsampling']}, {detail['huffman']} Huffman tables"
            remarks.append(f"{row['name']}: {setting}{missed}")
        if row["name"] == H264.name:
            remarks.append(
                "h264: the packets that the video came in; codec and JPEG were given what they decode to, so that its "
                "agreement is 1 by construction, and its rate is not at equal quality"
            )
    return remarks


def check_arms(arms: Sequence[str] | None) -> list[str]:
    """The arms to run, each a known name (UsageError otherwise); None means all."""
    if arms is None:
        return list(ARM_NAMES)
    unknown = [name for name in arms if name not in ARM_NAMES]
    if unknown or not arms:
        raise UsageError(f"unknown arm {unknown[0] if unknown else ''!r}", hint=f"arms: {', '.join(ARM_NAMES)}")
    return list(arms)


def _rgb_answers(setup: Setup, clip: Clip) -> list[Answers] | None:
    """What the RGB network says of the original frames: what agreement is measured against."""
    if setup.rgb is None:
        return None
    return [answers(setup.rgb, StageClock(setup.stages), frame[None])[0] for frame in clip.frames]


def _describe(arm: Arm, bundle: Bundle, clip: Clip) -> dict[str, Any]:
    """The row of an arm before anything ran: rate and cost."""
    mean_bytes = float(np.mean(arm.sizes))
    return {
        "name": arm.name,
        "description": description_of(type(arm), bundle.classifies),
        "detail": arm.detail,
        **_rate(mean_bytes, clip),
        **_cost(roles_of(type(arm), bundle.classifies), bundle, clip),
    }


def _rate(mean_bytes: float, clip: Clip) -> dict[str, float]:
    bpp = 8 * mean_bytes / (clip.size[0] * clip.size[1])
    return {"bytes_per_frame": mean_bytes, "bpp": bpp, "compression_factor": RGB_BITS / bpp}


def _cost(roles: Sequence[str], bundle: Bundle, clip: Clip) -> dict[str, float | None]:
    """MACs of a frame, None where they cannot be counted here, and parameters."""
    try:
        macs = frame_macs(bundle, roles, clip.size)
    except BackendMissingError:
        macs = None
    return {"macs_per_frame": macs, "parameters": sum(bundle.parameters(role) for role in roles)}


def _score_all(
    setup: Setup,
    rows: list[dict[str, Any]],
    clip: Clip,
    bundle: Bundle,
    reference: list[Answers] | None,
    progress: Progress,
) -> dict[str, list[Answers]]:
    """One untimed pass of every arm, frame by frame: quality, and the answers that batched runs must repeat."""
    kept: dict[str, list[Answers]] = {}
    for number, (arm, row) in enumerate(zip(setup.arms, rows, strict=True)):
        progress("scoring", number, len(rows))
        scores = new_scores(bundle, clip, reference)
        arm.start(1)
        kept[arm.name] = []
        for index in range(len(clip.frames)):
            answer = arm.run(index, index + 1, StageClock(setup.stages))[0]
            scores.add(index, answer)
            kept[arm.name].append(answer)
        row["agreement"] = scores.agreement()
        row["quality"] = scores.quality()
        row["timings"] = []
    return kept


def _ceiling(bundle: Bundle, clip: Clip, reference: list[Answers] | None) -> dict[str, Any] | None:
    """The RGB network on the original frames: no arm, never timed, only the quality to measure the others by."""
    if reference is None:
        return None
    scores = new_scores(bundle, clip, reference)
    for index, answer in enumerate(reference):
        scores.add(index, answer)
    height, width = clip.size
    role = "rgb_classifier" if bundle.classifies else "rgb_segmenter"
    return {
        "name": "rgb-original",
        "description": f"{role.replace('rgb_', 'RGB ')} on the original frames, not timed",
        **_rate(height * width * RGB_BITS / 8, clip),
        **_cost((role,), bundle, clip),
        "agreement": scores.agreement(),
        "quality": scores.quality(),
    }


def _time_all(
    setup: Setup,
    rows: list[dict[str, Any]],
    single: dict[str, list[Answers]],
    size: int,
    frames: int,
    rounds: int,
    warmup: int,
    seed: int,
    progress: Progress,
) -> None:
    """Add the timing at one batch size to every row."""
    agreements = {}
    for arm in setup.arms:
        arm.start(size)
        found = arm.run(0, size, StageClock(setup.stages))
        agreements[arm.name] = agreement(found, np.stack(single[arm.name][:size]))
    total = rounds * len(setup.arms)
    steps = iter(range(1, total + 1))
    timings: dict[str, Timing] = measure(
        {arm.name: arm for arm in setup.arms},
        frames,
        batch=size,
        rounds=rounds,
        warmup=warmup,
        seed=seed,
        stages=setup.stages,
        progress=lambda: progress(f"batch {size}", next(steps), total),
    )
    reference = timings.get(Compressed.name)
    for row in rows:
        timing = timings[row["name"]]
        row["timings"].append(
            {
                **timing.summary(),
                "time_over_compressed": None if reference is None else paired_ratio(timing, reference),
                "agreement_with_batch_1": agreements[row["name"]],
            }
        )
