"""The demo's picture: panels side by side with captions, and the classes' colours below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.sinks import palette
from ..errors import missing_extra

if TYPE_CHECKING:
    from ..engine.bundle import ClassInfo

GAP, TEXT = 8, 16  # pixels
INK, PAPER = (20, 20, 20), (255, 255, 255)


def side_by_side(path: Path, panels: Sequence[tuple[str, NDArray[np.uint8]]], classes: Sequence[ClassInfo]) -> None:
    """Write a PNG of (caption, frame (H, W, 3) or label map (H, W), uint8) panels of one size.

    Labels are drawn in the classes' colours; only classes that occur are in the legend. Raises BackendMissingError
    without Pillow, OSError where the file cannot be written.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise missing_extra("pillow", "video") from None
    colors = palette(classes)
    height, width = panels[0][1].shape[:2]
    present = sorted({int(label) for _, image in panels if image.ndim == 2 for label in np.unique(image)})
    font = ImageFont.load_default(TEXT - 3)
    page_width = len(panels) * (width + GAP) + GAP
    entries = [classes[label] for label in present if label < len(classes)]
    rows = _legend_rows([font.getlength(entry.name) for entry in entries], page_width)
    top = GAP + TEXT + GAP // 2
    page = Image.new("RGB", (page_width, top + height + GAP + rows[-1][1] * (TEXT + 4) + TEXT + GAP), PAPER)
    draw: Any = ImageDraw.Draw(page)
    for place, (caption, image) in enumerate(panels):
        left = GAP + place * (width + GAP)
        draw.text((left, GAP), caption, INK, font=font)
        page.paste(Image.fromarray(colors[image] if image.ndim == 2 else image), (left, top))
    for entry, (left, row) in zip(entries, rows, strict=False):
        upper = top + height + GAP + row * (TEXT + 4)
        draw.rectangle((left, upper, left + TEXT - 4, upper + TEXT - 4), fill=entry.color, outline=INK)
        draw.text((left + TEXT, upper - 1), entry.name, INK, font=font)
    page.save(path)


def _legend_rows(lengths: Sequence[float], width: int) -> list[tuple[int, int]]:
    """(left, row) of each entry, broken into rows of at most `width` pixels; at least one place."""
    places, left, row = [], GAP, 0
    for length in lengths:
        needed = int(length) + TEXT + 2 * GAP
        if left + needed > width and left > GAP:
            left, row = GAP, row + 1
        places.append((left, row))
        left += needed
    return places or [(GAP, 0)]
