"""The rows of `video_rates.py`: one clip through every codec, and what the networks make of what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import video_codecs
from .clips import Clip
from .frontier_arms import Arm, labeller
from .video_codecs import VideoCodec
from .video_report import interval_text

if TYPE_CHECKING:
    from .video_ours import LearnedVideo

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
Row = dict[str, Any]
RGB_BITS = 24


class Judge:
    """The networks on one clip: labels of originals once, and scores of whatever else they are given.

    networks: name and arm; an RGB one at least. latents: of the original frames, where some network wants them.
    """

    def __init__(self, networks: Sequence[Arm], clip: Clip, latents: Sequence[Any], classes: Sequence[str]) -> None:
        self.arms = {arm.spec.name: arm for arm in networks}
        self._label = {n: labeller(arm.network.net, arm.spec.way != "latent") for n, arm in self.arms.items()}  # type: ignore
        self._clip, self._classes = clip, classes
        self._own = {name: self._labels(name, latents if self.latent(name) else clip.frames) for name in self.arms}
        self._rgb = self._own[next(name for name in self.arms if not self.latent(name))]

    def latent(self, name: str) -> bool:
        """Whether a network works on latents."""
        return self.arms[name].spec.way == "latent"

    def names(self, latent: bool) -> list[str]:
        """The networks of one kind."""
        return [name for name in self.arms if self.latent(name) == latent]

    def _labels(self, name: str, inputs: Iterable[Any]) -> list[Labels]:
        return [self._label[name](received, self._clip.size) for received in inputs]

    def scores(self, name: str, inputs: Sequence[Any]) -> dict[str, Any]:
        """The part of a row that says what a network makes of frames or latents, all of the clip in order."""
        from ..training.data import IGNORE
        from ..training.metrics import ConfusionMatrix

        found = self._labels(name, inputs)
        arm, quality = self.arms[name], None
        if self._clip.labels is not None:
            matrix = ConfusionMatrix(len(self._classes), ignore=IGNORE)
            for truth, labels in zip(self._clip.labels, found, strict=True):
                matrix.update(truth, labels)
            quality = matrix.to_dict(self._classes)
        return {
            "way": "latent" if self.latent(name) else "rgb",
            "name": name,
            "network": arm.network and arm.network.described,
            "quality": quality,
            "agreement": _same(found, self._own[name]),
            "agreement_rgb": _same(found, self._rgb),
        }


def _same(labels: Sequence[Labels], others: Sequence[Labels]) -> float:
    return float(np.mean([np.mean(own == other) for own, other in zip(labels, others, strict=True)]))


def psnr(frames: Sequence[Frame], originals: Sequence[Frame]) -> float | None:
    """Mean over frames in dB; None where one came out without error."""
    from ..training import metrics

    values = [metrics.psnr(frame, original) for frame, original in zip(frames, originals, strict=True)]
    mean = math.fsum(values) / len(values)
    return mean if math.isfinite(mean) else None


@dataclass(frozen=True)
class Grid:
    """What is measured on every clip. key_intervals: None for the first frame alone. crfs: by codec."""

    steps: Sequence[float]
    crfs: Mapping[VideoCodec, Sequence[float]]
    key_intervals: Sequence[int | None]
    threads: int

    @property
    def streams(self) -> int:
        """How many streams are made of a clip, the original counted as one."""
        return 1 + len(self.key_intervals) * (len(self.steps) + sum(map(len, self.crfs.values())))


def measure_clip(
    clip: Clip,
    codec: Arm,
    networks: Sequence[Arm],
    classes: Sequence[str],
    grid: Grid,
    begin: Callable[[str], None] = lambda text: None,
) -> Iterator[list[Row]]:
    """The rows of one clip, those of a stream at a time; the first are of the RGB networks on the original frames.

    codec, networks: arms of trained networks, an RGB one at least. classes: names, for scores. begin: called with what
    comes next. Raises InputError for a clip that H.264 and AV1 cannot take, UsageError for a step that `codec` cannot.
    """
    from .video_ours import LearnedVideo

    assert codec.codec is not None
    begin("original")
    video = None
    if grid.steps:
        video = LearnedVideo(codec.codec.net, clip.frames, clip.frame_rate, grid.threads)
    wanted = [arm for arm in networks if video is not None or arm.spec.way != "latent"]
    judge = Judge(wanted, clip, video.latents if video else (), classes)
    raw = _row(clip, {"name": "original", "kind": "original"}, None, "-", clip.frames[0].nbytes * len(clip.frames), 0.0)
    yield [raw | judge.scores(name, clip.frames) for name in judge.names(latent=False)]
    if video is not None:
        for step in grid.steps:
            yield from _learned_rows(clip, codec, video, judge, step, grid.key_intervals, begin)
    if not any(grid.crfs.values()):
        return
    planes = video_codecs.to_planes(clip.frames, clip.frame_rate)
    for other, crfs in grid.crfs.items():
        for key_interval in grid.key_intervals:
            for crf in crfs:
                begin(f"{other.name} CRF {crf:g}, keys: {interval_text(key_interval)}")
                yield _video_rows(clip, other, planes, judge, crf, key_interval, grid.threads)


def _row(clip: Clip, codec: dict[str, Any], key_interval: int | None, setting: str, count: int, seconds: float) -> Row:
    """What all rows of a stream share. count: bytes. seconds: of the sender."""
    height, width = clip.size
    frames, rate = len(clip.frames), clip.frame_rate[0] / clip.frame_rate[1]
    return {
        "clip": {
            "name": clip.name,
            "frames": frames,
            "size": [height, width],
            "rate": list(clip.frame_rate),
            "labels": clip.labels_name,
            "video": None if clip.video is None else compression(clip.video),
        },
        "codec": codec,
        "key_interval": key_interval,
        "setting": setting,
        "bytes": count,
        "bpp": 8 * count / (frames * height * width),
        "kbit_s": 8 * count * rate / (1000 * frames),
        "encode_ms": 1000 * seconds / frames or None,
        "decode_ms": None,
        "psnr": None,
    }


def _learned_rows(
    clip: Clip,
    codec: Arm,
    video: LearnedVideo,
    judge: Judge,
    step: float,
    key_intervals: Sequence[int | None],
    begin: Callable[[str], None],
) -> Iterator[list[Row]]:
    """The rows of one step: the key intervals share their latents, and so what networks make of them."""
    from .video_ours import check_same

    assert codec.codec is not None
    count, first = len(clip.frames), None
    for key_interval in key_intervals:
        what = f"{codec.spec.name} step {step:g}, keys: {interval_text(key_interval)}"
        begin(what)
        sent = video.send(step, key_interval)
        latents, seconds = video.receive(sent)
        if first is None:
            first = latents
            pictures, decompress = video.pictures(latents)
            scores = [judge.scores(name, latents) for name in judge.names(latent=True)]
            distortion = {"psnr": psnr(pictures, clip.frames)}
            scores += [judge.scores(name, pictures) | distortion for name in judge.names(latent=False)]
        check_same(latents, first, what)
        described = {
            **codec.codec.described, "network": codec.codec.described["name"], "name": codec.spec.name,
            "kind": "learned", "coder": sent.header.coder, "key_frames": sent.key_frames,
        }  # fmt: skip
        sender = video.compress_seconds + sent.seconds
        shared = _row(clip, described, key_interval, f"step {step:g}", sent.bytes, sender)
        times = {"latent": 1000 * seconds / count, "rgb": 1000 * (seconds + decompress) / count}
        yield [shared | found | {"decode_ms": times[found["way"]]} for found in scores]


def _video_rows(
    clip: Clip,
    codec: VideoCodec,
    planes: Sequence[Any],
    judge: Judge,
    crf: float,
    key_interval: int | None,
    threads: int,
) -> list[Row]:
    coded = video_codecs.encode(planes, codec, clip.frame_rate, crf, key_interval, threads)
    decoded, seconds = video_codecs.decode(coded, threads)
    frames = video_codecs.to_frames(decoded)
    described = {
        "name": codec.name, "kind": "video", "encoder": codec.encoder, "version": coded.version,
        "options": dict(codec.options), "key_frames": coded.keys,
    }  # fmt: skip
    shared = _row(clip, described, key_interval, f"CRF {crf:g}", coded.bytes, coded.seconds)
    shared |= {"decode_ms": 1000 * seconds / len(frames), "psnr": psnr(frames, clip.frames)}
    return [shared | judge.scores(name, frames) for name in judge.names(latent=False)]


def compression(video: Path) -> str:
    """FFmpeg's name of how a video file is compressed, such as "h264"."""
    import av

    with av.open(str(video)) as container:
        return str(container.streams.video[0].codec_context.name)
