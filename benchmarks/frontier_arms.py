"""What `frontier.py` compares: trained networks as rows describe them, and the ways on which a frame reaches them.

A way is a source and what is segmented of it. A `Source` is a coder at one level; sources are shared, so that all
networks, and all seeds, get the very same bytes. Networks run in torch, in the graphs that a bundle deploys.
"""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.geometry import crop, pad_to_stride
from ..errors import UsageError, missing_extra
from . import jpeg

if TYPE_CHECKING:
    from torch import nn

    from ..bitstream import StreamHeader
    from ..training.checkpoint import Weights

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
Latent = NDArray[np.float32]

STILLS = ("jpeg", "webp", "avif")
# Each way, and the kinds of the registry that it takes: RUN's, and CODEC's where it needs one.
WAYS: dict[str, tuple[str, str | None]] = {
    "latent": ("latent_segmenter", "codec"),
    "original": ("rgb_segmenter", None),
    **dict.fromkeys(STILLS, ("rgb_segmenter", None)),
    "decoded": ("rgb_segmenter", "codec"),
    "codec": ("codec", None),
}
PAPER_CODER = "huffman-frame"  # of Kakaiya et al.: one Huffman code a frame
RGB_STRIDE = 8  # what frames are padded to in front of an RGB network, as in a bundle


@dataclass(frozen=True)
class Spec:
    """`WAY:NAME=RUN[,CODEC]`. Specs of one way and name are the seeds of one series."""

    way: str
    name: str
    run: str
    codec: str | None


def parse_arm(text: str) -> Spec:
    """A spec of the command line. Raises UsageError for another form, and where a codec lacks or is too many."""
    head, equals, runs = text.partition("=")
    way, colon, name = head.partition(":")
    run, comma, codec = runs.partition(",")
    if not (equals and colon and name and run) or (comma and not codec):
        raise UsageError(f"--arm {text}, expected WAY:NAME=RUN[,CODEC]", hint=f"ways: {', '.join(WAYS)}")
    if way not in WAYS:
        raise UsageError(f"--arm {text}: unknown way '{way}'", hint=f"use one of: {', '.join(WAYS)}")
    if bool(comma) != (WAYS[way][1] is not None):
        wanted = "needs a codec behind the run" if not comma else "takes no codec"
        raise UsageError(f"--arm {text}: the way '{way}' {wanted}", hint="expected WAY:NAME=RUN[,CODEC]")
    return Spec(way, name, run, codec or None)


@dataclass(frozen=True, eq=False)
class Part:
    """A network. described: as a row has it; its `id` is None where it has no training. net: the torch module."""

    described: dict[str, Any]
    net: nn.Module

    @property
    def id(self) -> str | None:
        found: str | None = self.described["id"]
        return found


@dataclass(frozen=True, eq=False)
class Arm:
    """One network, or a codec alone, on one way."""

    spec: Spec
    network: Part | None
    codec: Part | None

    @property
    def trained(self) -> bool:
        """Whether there is anything to score; else it has costs alone."""
        return all(part is None or part.id is not None for part in (self.network, self.codec))


class Loader:
    """Reads runs, each content once: arms of one codec share it, and with it what it codes."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._parts: dict[str, Part] = {}

    def arm(self, spec: Spec) -> Arm:
        """The networks of a spec.

        A name of the registry in place of a run is a network without training. Raises UsageError where the run is
        neither, has other classes, or learned on the latents of another codec; else as `checkpoint.load_weights`.
        """
        kind, codec_kind = WAYS[spec.way]
        codec = None if codec_kind is None or spec.codec is None else self._part(spec.codec, codec_kind, None)
        found = self._part(spec.run, kind, codec)
        if spec.way == "codec":
            return Arm(spec, None, found)
        if spec.way == "latent" and codec is not None:
            self._check_codec(spec, found, codec)
        return Arm(spec, found, codec)

    def _part(self, run: str, kind: str, codec: Part | None) -> Part:
        from ..models import registry
        from ..training.checkpoint import load_weights

        if not Path(run).exists():
            if run not in registry.names():
                raise UsageError(f"'{run}' is neither a run's folder nor a network's name", hint="latentseg train")
            return self._untrained(run, kind, codec)
        weights = load_weights(Path(run), kinds=(kind,))
        classes = weights.options.get("classes", self._classes)
        if classes != self._classes:
            raise UsageError(
                f"{run} has {classes} classes, the data {self._classes}", hint="give the --layout of its training"
            )
        return self._parts.setdefault(weights.content_id, Part(describe(weights), weights.build()))

    def _untrained(self, name: str, kind: str, codec: Part | None) -> Part:
        from ..models import registry

        found = registry.entry(name).kind
        if found != kind:
            raise UsageError(f"'{name}' is a {found}, expected a {kind}")
        known = registry.open_options(name)
        options = {"classes": self._classes} if "classes" in known else {}
        if codec is not None and kind == "latent_segmenter" and "channels" in known:
            options["channels"] = int(codec.net.channels)  # type: ignore[arg-type]
        facts = {"name": name, "id": None, "steps": None, "seconds": None, "seed": None, "init": "", "input": None}
        return Part(facts, registry.create(name, **options).eval())

    @staticmethod
    def _check_codec(spec: Spec, network: Part, codec: Part) -> None:
        from ..training.train_segmenter import check_fit

        check_fit(network.net, codec.net, network.described["name"])
        if network.id is None or codec.id is None:
            return
        learned = network.described["input"]["codec"]
        if learned != codec.id:
            raise UsageError(
                f"{spec.run} learned on codec {(learned or '(none)')[:16]}, found {codec.id[:16]} in {spec.codec}",
                hint="give the codec of its training behind the comma",
            )


def describe(weights: Weights) -> dict[str, Any]:
    """A trained network for a row: its name and content id, and how it came to be.

    `steps`, `seconds`, `seed`: of its last run (null of an average of runs). `init`: content id of what that run
    started from (under hints, the teacher), "pca", or "". `average_of`: of how many runs it is the mean, or null.
    `input`: what a segmenter learned from, with the levels (quality, or quantisation step) and the codec; null of a
    codec.
    """
    from ..models import registry
    from ..training.steps import trained_steps

    settings = weights.facts.get("settings", {})
    kind = registry.entry(weights.network).kind
    joint = "joint" in settings
    segmenter = settings.get("segmenter", {})
    learned: dict[str, Any] | None = None
    if kind == "latent_segmenter":
        learned = {"kind": "latents", "codec": settings.get("codec"), "levels": list(trained_steps(settings))}
    elif kind == "rgb_segmenter" and settings.get("decoded_by"):
        learned = {"kind": "decoded", "codec": settings["decoded_by"], "levels": list(trained_steps(settings))}
    elif kind == "rgb_segmenter" and segmenter.get("jpeg_quality"):
        learned = {"kind": "jpeg", "codec": None, "levels": segmenter["jpeg_quality"]}
    elif kind == "rgb_segmenter":
        learned = {"kind": "originals", "codec": None, "levels": None}
    init = settings.get("init", "")
    if joint and kind != "codec":
        # Under hints it began with its teacher's trunk.
        init = settings.get("segmenter_init") or (settings["teacher"] if settings["joint"]["hint_steps"] else "")
    averaged = settings.get("average_of")
    return {
        "name": weights.network,
        "id": weights.content_id,
        "steps": weights.facts.get("steps"),
        "seconds": weights.facts.get("seconds"),
        "seed": settings.get("loop", {}).get("seed"),
        "init": init,
        "average_of": len(averaged) if averaged else None,
        "input": learned,
    }


@dataclass(frozen=True, eq=False)
class Coded:
    """A frame as it travels.

    data: bytes, or of `Raw` the frame. sizes: bytes with framing by coder, `data`'s first. header: of a stream.
    """

    data: Any
    sizes: dict[str, int]
    header: StreamHeader | None = None


class Source(ABC):
    """A coder at one level. `receive` gives what comes out of the bytes: a picture, or of a learned codec a latent."""

    level: float | None = None

    @abstractmethod
    def encode(self, frame: Frame) -> Coded:
        """RGB uint8 (H, W, 3) to bytes."""

    @abstractmethod
    def receive(self, coded: Coded) -> Any:
        """RGB uint8 (H, W, 3), or a latent float32 (C, h, w)."""

    def picture(self, received: Any, size: tuple[int, int]) -> Frame:
        """RGB uint8 of `size` = (height, width), of what was received."""
        found: Frame = received
        return found


class Raw(Source):
    """The frames as they are, 24 bits a pixel."""

    def encode(self, frame: Frame) -> Coded:
        return Coded(frame, {"raw": frame.nbytes})

    def receive(self, coded: Coded) -> Frame:
        found: Frame = coded.data
        return found


class Still(Source):
    """A file format of Pillow's at one quality, chroma at half resolution; the whole file counts."""

    def __init__(self, format: str, quality: float) -> None:
        try:
            from PIL import features
        except ImportError:
            raise missing_extra("pillow", "video") from None
        if format != "jpeg" and not features.check(format):
            raise UsageError(f"this Pillow was built without {format}", hint=f"leave the way '{format}' out")
        self.format, self.level = format, quality

    def encode(self, frame: Frame) -> Coded:
        assert self.level is not None
        quality = int(self.level)
        if self.format == "jpeg":
            data = jpeg.encode(frame, quality)
        else:
            from PIL import Image

            target = io.BytesIO()
            # WebP's slowest method; AVIF's next to quickest, which takes half a second a frame as it is.
            how = {"method": 6} if self.format == "webp" else {"speed": 8, "subsampling": "4:2:0"}
            Image.fromarray(frame).save(target, self.format.upper(), quality=quality, **how)
            data = target.getvalue()
        return Coded(data, {self.format: len(data)})

    def receive(self, coded: Coded) -> Frame:
        return jpeg.decode(coded.data)


class Learned(Source):
    """A learned codec whose quantisation step is multiplied by `step`, under the context coder.

    A stream of another step has the range ("fixed", step * lo, step * hi) in its header; codecs of other scalings have
    step 1 alone.
    """

    def __init__(self, codec: nn.Module, step: float, coder: str) -> None:
        from ..export.graphs import DecompressorGraph

        self.codec, self.level, self.coder = codec, step, coder
        self._decompress = DecompressorGraph(codec).eval()

    def encode(self, frame: Frame) -> Coded:
        import torch

        from ..bitstream import Scaling, Writer
        from ..kernels import entropy
        from ..training.evaluate import latent, stream_header

        with torch.inference_mode():
            z = np.ascontiguousarray(latent(self.codec, frame)[0].numpy())
        sizes, payloads = {}, []
        for coder in dict.fromkeys((self.coder, PAPER_CODER)):
            header = stream_header(self.codec, z.shape, frame.shape[:2], coder)
            if header.scaling.mode == "fixed":
                assert self.level is not None
                scaling = Scaling("fixed", self.level * header.scaling.lo, self.level * header.scaling.hi)
                header = dataclasses.replace(header, scaling=scaling)
            payloads.append((entropy.encode_latent(z, header), header))
            sizes[coder] = Writer(io.BytesIO(), header).write(payloads[-1][0])
        return Coded(payloads[0][0], sizes, payloads[0][1])

    def receive(self, coded: Coded) -> Latent:
        from ..kernels import entropy

        assert coded.header is not None
        return entropy.decode_latent(coded.data, coded.header)

    def picture(self, received: Latent, size: tuple[int, int]) -> Frame:
        import torch

        with torch.inference_mode():
            frames: NDArray[np.uint8] = self._decompress(torch.from_numpy(received)[None]).numpy()
        return crop(frames, size)[0]  # type: ignore[no-any-return]


def fixed_step(codec: nn.Module) -> bool:
    """Whether a codec's quantisation step can be chosen."""
    return bool(codec.scaling[0] == "fixed")  # type: ignore[index]


def labeller(network: nn.Module, rgb: bool) -> Callable[[Any, tuple[int, int]], Labels]:
    """A segmenter as a function of a picture or a latent, and the frame's size, to labels uint8 (H, W)."""
    import torch

    from ..export.graphs import LabelsGraph

    graph = LabelsGraph(network, rgb).eval()

    def label(received: Any, size: tuple[int, int]) -> Labels:
        x = pad_to_stride(received[None], RGB_STRIDE) if rgb else received[None]
        with torch.inference_mode():
            # Pillow's arrays are read-only, which torch warns of.
            labels: NDArray[np.uint8] = graph(torch.from_numpy(np.require(x, requirements="W"))).numpy()
        return crop(labels, size)[0]  # type: ignore[no-any-return]

    return label


def costs(arm: Arm, size: tuple[int, int]) -> dict[str, dict[str, int]]:
    """`parameters` that inference uses, and `macs` of a frame of `size` = (height, width), of an arm's parts:
    segmenter, decoder (where it decodes with a network) and encoder (of the sender)."""
    from ..models.complexity import count

    counted = {}
    stride = RGB_STRIDE if arm.codec is None else int(arm.codec.net.stride)  # type: ignore[arg-type]
    height, width = (-(-side // stride) * stride for side in size)
    frames = (1, 3, height, width)
    latents: tuple[int, ...] = ()
    if arm.codec is not None:
        codec: Any = arm.codec.net
        latents = (1, codec.channels, height // stride, width // stride)
        counted["encoder"] = count(codec.compressor, frames)
        if arm.spec.way != "latent":
            counted["decoder"] = count(codec.decompressor, latents)
    if arm.network is not None:
        height, width = (-(-side // RGB_STRIDE) * RGB_STRIDE for side in size)
        counted["segmenter"] = count(arm.network.net, latents if arm.spec.way == "latent" else (1, 3, height, width))
    return {
        "parameters": {name: found.parameters for name, found in counted.items()},
        "macs": {name: found.macs for name, found in counted.items()},
    }


def sources(arms: Sequence[Arm], levels: Mapping[str, Sequence[float]], coder: str) -> list[tuple[Source, list[Arm]]]:
    """Every source that the arms that are trained need, and which arms share it. levels: qualities by format, and
    under "codec" the steps."""
    found: dict[tuple[Any, ...], tuple[Source, list[Arm]]] = {}
    for arm in arms:
        for key in _keys(arm, levels) if arm.trained else ():
            if key not in found:
                found[key] = (_source(key, arm, coder), [])
            found[key][1].append(arm)
    return list(found.values())


def _keys(arm: Arm, levels: Mapping[str, Sequence[float]]) -> list[tuple[Any, ...]]:
    way = arm.spec.way
    if arm.codec is not None:
        return [(arm.codec.id, step) for step in (levels["codec"] if fixed_step(arm.codec.net) else (1.0,))]
    return [(way, quality) for quality in levels[way]] if way in STILLS else [(way, None)]


def _source(key: tuple[Any, ...], arm: Arm, coder: str) -> Source:
    if arm.codec is not None:
        return Learned(arm.codec.net, key[1], coder)
    return Raw() if key[1] is None else Still(*key)
