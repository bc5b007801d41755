"""Small labelled data and tiny bundles whose classes are theirs, for the tests of measuring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentseg.engine.bundle import Bundle, ClassInfo, load_bundle, write_bundle
from latentseg.training.data import camvid_classes

Frame = NDArray[np.uint8]
DIGITS = [str(number) for number in range(7)]


def picture(height: int, width: int, seed: int) -> Frame:
    """Blocks of colour with some noise, so that what a codec or JPEG loses changes some answers but not all."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(-(-height // 8), -(-width // 8), 3))
    smooth = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.clip(smooth + rng.integers(-20, 21, size=smooth.shape), 0, 255).astype(np.uint8)


def with_classes(path: Path, bundle: Bundle, classes: Sequence[ClassInfo], training: dict[str, Any]) -> Bundle:
    """The same networks under other names of classes, with notes of their training."""
    models = {role: (bundle.model_path(role), 1.0, 100 + number) for number, role in enumerate(bundle.roles)}
    return write_bundle(path, path.name, bundle.codec, models, classes, training=training)


def camvid_bundle(folder: Path, roles: Sequence[str] = tiny.ROLES) -> Bundle:
    """The tiny segmenters, whose labels 0 to 2 are the first of CamVid's 11 classes."""
    classes = camvid_classes()
    infos = [ClassInfo(name, color) for name, color in zip(classes.names, classes.colors, strict=True)]
    tiny.write_tiny_bundle(folder / "tiny", roles)
    return with_classes(folder / "streets", load_bundle(folder / "tiny"), infos, {})


def digit_bundle(folder: Path) -> Bundle:
    """The tiny classifiers, whose 7 classes are named as those of idx files are; trained on 24x24, it says."""
    tiny.write_tiny_bundle(folder / "tiny-classifiers", tiny.CLASSIFYING)
    training = {"classifier": {"network": "tiny-c", "settings": {"classifier": {"size": 24}}}, "rgb_classifier": 3}
    infos = [ClassInfo(name) for name in DIGITS]
    return with_classes(folder / "digits", load_bundle(folder / "tiny-classifiers"), infos, training)


def write_camvid(root: Path, sizes: Sequence[tuple[int, int]]) -> tuple[list[Frame], list[Frame]]:
    """CamVid's layout, split "val": frames of these sizes and labels 0 to 2, some ignored (11)."""
    (root / "val").mkdir(parents=True)
    frames, labels, lines = [], [], []
    for number, (height, width) in enumerate(sizes):
        frames.append(picture(height, width, number))
        labels.append(frames[-1].argmax(2).astype(np.uint8))
        labels[-1][:, : 1 + number] = 11
        for kind, pixels in (("image", frames[-1]), ("label", labels[-1])):
            Image.fromarray(pixels).save(root / "val" / f"{kind}{number}.png")
        lines.append(f"val/image{number}.png val/label{number}.png")
    (root / "val.txt").write_text("\n".join(lines) + "\n")
    return frames, labels


def write_idx(root: Path, count: int, side: int = 24) -> tuple[list[Frame], NDArray[np.uint8]]:
    """The idx layout, split "test": `count` colour images, the first 7 of the classes 0 to 6, the others of the class
    that the tiny RGB classifier finds the likeliest."""
    root.mkdir(parents=True)
    frames = [picture(side, side, number) for number in range(count)]
    labels = tiny.probabilities(tiny.frame_means(np.stack(frames))).argmax(1).astype(np.uint8)
    labels[:7] = np.arange(7)
    for name, values in (("images", np.stack(frames)), ("labels", labels)):
        axes = np.array(values.shape, ">u4").tobytes()
        (root / f"t10k-{name}-idx{values.ndim}-ubyte").write_bytes(
            bytes([0, 0, 8, values.ndim]) + axes + values.tobytes()
        )
    return frames, labels
