"""From checkpoints to a verified bundle, in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bitstream import Scaling, StreamHeader
from ..bitstream.header import DEFAULT_CODER, tile_for
from ..engine.bundle import Bundle, ClassInfo, CodecSpec, add_variant, write_bundle
from ..engine.codec import ONE_STEP
from ..engine.manifest import CLASSIFYING_ROLES
from ..errors import ArtifactError, UsageError
from ..models import registry
from ..training.checkpoint import Weights
from ..training.data import ClassSet
from ..training.image_sets import settings_names
from ..training.received import check_step_range
from ..training.steps import common_steps, trained_steps
from ..training.train_segmenter import check_fit
from .onnx import OPSET, Exported, classifier_graph, codec_graphs, export_role, halve_weights, segmenter_graph
from .program import verify_program, write_program
from .verify import make_reference, verify_entropy, verify_export

# What may be a bundle's role, by its kind in the registry.
KINDS = {
    "segmenter": "latent_segmenter", "rgb_segmenter": "rgb_segmenter",
    "classifier": "latent_classifier", "rgb_classifier": "rgb_classifier",
}  # fmt: skip


def export_bundle(
    out: Path,
    name: str,
    codec: Weights,
    *,
    segmenter: Weights | None = None,
    rgb_segmenter: Weights | None = None,
    classifier: Weights | None = None,
    rgb_classifier: Weights | None = None,
    classes: ClassSet | None = None,
    frames: NDArray[np.uint8] | None = None,
    size: tuple[int, int] = (360, 480),
    largest: tuple[int, int] = (1080, 1920),
    scores: Mapping[str, Any] | None = None,
    description: str = "",
    coder: str = DEFAULT_CODER,
    tile: tuple[int, int] | None = None,
    half_weights: bool = False,
    programs: bool = False,
    steps: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Export, verify, and only then write a bundle.

    codec: gives compressor and decompressor. segmenter, classifier: trained on this codec's latents. classes: of the
    segmenters; classifiers name their own. A bundle has segmenters or classifiers, not both.
    frames: real frames uint8 (N, H, W, 3) to verify on; noise without. size, largest: the usual and the largest frame
    (height, width). coder, tile: of the streams that the bundle writes. half_weights: store the weights as float16, but
    for the codec's (its symbols must be the ones it was trained with). programs: add an exported program of every role,
    as its variant "torch". Verification runs at one stride by one stride, at `size` and at `largest`, in batches of 1,
    2 and 1. steps: lowest and highest quantisation step of the bundle's streams, with 1 between them; None: those that
    the codec and what takes its latents were all trained for. Wider ones are for who has measured them.

    Raises VerificationError where a model disagrees with torch, ArtifactError where the parts do not belong together.
    """
    given = {
        "segmenter": segmenter, "rgb_segmenter": rgb_segmenter,
        "classifier": classifier, "rgb_classifier": rgb_classifier,
    }  # fmt: skip
    parts = {role: weights for role, weights in given.items() if weights is not None}
    infos = _classes(parts, classes)
    for role in ("segmenter", "classifier"):
        if role in parts:
            _check_codec(role, parts[role], codec)
    net = codec.build()
    if steps is not None:
        check_step_range(net, steps)
    stride, channels = int(net.stride), int(net.channels)  # type: ignore[arg-type]
    spec = CodecSpec(
        name=codec.network,
        id=bytes.fromhex(codec.content_id),
        channels=channels,
        stride=stride,
        bits=int(net.bits),  # type: ignore[arg-type]
        scaling=Scaling(*net.scaling),  # type: ignore[misc]
        coder=coder,  # type: ignore[arg-type]
        tile=tile_for(coder, tile or net.tile),  # type: ignore[arg-type]
        steps=bundle_steps(codec, parts) if steps is None else steps,
    )
    graphs = codec_graphs(net)
    for role, weights in parts.items():
        module = weights.build()
        rgb = role.startswith("rgb")
        if not rgb:
            check_fit(module, net, weights.network)
        graphs[role] = (classifier_graph if role in CLASSIFYING_ROLES else segmenter_graph)(module, rgb)

    with tempfile.TemporaryDirectory() as folder:
        models = [export_role(role, g, Path(folder) / f"{role}.onnx", channels, stride) for role, g in graphs.items()]
        if half_weights:
            for model in models:
                if model.role in parts:
                    halve_weights(model.path)
        shapes = _shapes(stride, size, largest)
        verification = _verify(models, spec, frames, shapes)
        variants = []
        for model in models if programs else ():
            program = write_program(model.graph, Path(folder) / f"{model.role}.pt2", model.role, channels, stride)
            variants.append((model.role, program, verify_program(model, program, shapes)))
        bundle = write_bundle(
            out,
            name,
            spec,
            {m.role: (m.path, m.macs_per_pixel, m.parameters) for m in models},
            infos,
            verification,
            dict(scores or {}),
            {r: {"network": w.network, "id": w.content_id, **w.facts} for r, w in {"codec": codec, **parts}.items()},
            description,
            overwrite=overwrite,
        )
        for role, program, report in variants:
            bundle = add_variant(bundle, role, "torch", program, report)
    return bundle


def _classes(parts: Mapping[str, Weights], classes: ClassSet | None) -> list[ClassInfo]:
    """The bundle's classes, once every part is known to be what its role takes, and to have them."""
    for role, weights in parts.items():
        kind = registry.entry(weights.network).kind
        if kind != KINDS[role]:
            raise ArtifactError(f"'{weights.network}' is a {kind}, it cannot be the bundle's {role}")
    classifying = [role for role in parts if role in CLASSIFYING_ROLES]
    if classifying and len(classifying) < len(parts):
        raise UsageError(
            f"{', '.join(parts)} in one bundle, expected segmenters or classifiers", hint="export two bundles"
        )
    if classifying:
        lists = {role: _class_names(role, parts[role]) for role in classifying}
        first, last = classifying[0], classifying[-1]
        if lists[first] != lists[last]:
            raise ArtifactError(
                f"the {first}'s classes are {_shown(lists[first])}; the {last}'s {_shown(lists[last])}",
                hint="train both on the same data set",
            )
        return [ClassInfo(name) for name in lists[first]]
    if parts and classes is None:
        raise UsageError("a bundle with a segmenter needs its classes", hint="--layout camvid, cityscapes or voc")
    for role, weights in parts.items():
        assert classes is not None
        if weights.options["classes"] != len(classes.names):
            raise ArtifactError(f"the {role} has {weights.options['classes']} classes, the layout {len(classes.names)}")
    return [ClassInfo(n, c) for n, c in zip(classes.names, classes.colors, strict=True)] if classes and parts else []


def _class_names(role: str, weights: Weights) -> list[str]:
    """What the training noted of a classifier's classes, in the order of its outputs."""
    names, count = settings_names(weights.facts["settings"]), weights.options["classes"]
    if len(names) != count:
        raise ArtifactError(
            f"the {role} has {count} classes, and its training noted the names of {len(names)}",
            hint="train it with: latentseg train classifier",
        )
    return names


def _shown(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _check_codec(role: str, weights: Weights, codec: Weights) -> None:
    trained_on = weights.facts["settings"]["codec"]
    if trained_on != codec.content_id:
        raise ArtifactError(
            f"the {role} was trained on the latents of codec {trained_on[:16]}, found {codec.content_id[:16]}",
            hint=f"give the codec that the {role} was trained with",
        )


def bundle_steps(codec: Weights, parts: Mapping[str, Weights]) -> tuple[float, float]:
    """Lowest and highest quantisation step that the codec and what takes its latents were all trained for.

    parts: the other networks, by role; those of RGB do not count. Raises ArtifactError where 1 is not among the steps.
    """
    latent = {role: weights for role, weights in parts.items() if not role.startswith("rgb")}
    ranges = {role: trained_steps(w.facts.get("settings", {})) for role, w in {"codec": codec, **latent}.items()}
    lowest, highest = common_steps(ranges.values())
    if not lowest <= 1 <= highest:
        learned = ", ".join(f"the {role} for {low:g} to {high:g}" for role, (low, high) in ranges.items())
        raise ArtifactError(
            f"trained for quantisation steps: {learned}; expected ranges that all hold 1, which bundles start from",
            hint="train with a --step-range LO HI around 1, or say with --steps what was measured",
        )
    return (lowest, highest) if lowest < highest else ONE_STEP


def _shapes(stride: int, size: tuple[int, int], largest: tuple[int, int]) -> list[tuple[int, int, int]]:
    """The (batch, height, width) to verify at: the smallest, the usual and the largest frame, padded to the stride."""
    usual, large = ([-(-side // stride) * stride for side in sides] for sides in (size, largest))
    return [(1, stride, stride), (2, usual[0], usual[1]), (1, large[0], large[1])]


def _verify(
    models: Sequence[Exported],
    spec: CodecSpec,
    frames: NDArray[np.uint8] | None,
    shapes: Sequence[tuple[int, int, int]],
) -> dict[str, Any]:
    s = spec.stride
    usual = shapes[1][1:]
    header = StreamHeader(
        codec_id=spec.id,
        latent_shape=(spec.channels, usual[0] // s, usual[1] // s),
        bits=spec.bits,
        scaling=spec.scaling,
        source_size=(usual[0], usual[1]),
        frame_rate=(0, 1),
        coder=spec.coder,
        tile=spec.tile,
    )
    found = verify_export(models, header, shapes, frames)
    compressor = next(m for m in models if m.role == "compressor")
    import torch

    with torch.no_grad():
        latents = compressor.graph(compressor.example(2, usual[0], usual[1])).numpy()
    return {
        "opset": OPSET,
        "torch": torch.__version__,
        "real_frames": 0 if frames is None else len(frames),
        "entropy": verify_entropy(latents, header),
        **found,
        "reference": make_reference(models, header),
    }
