"""A small moving picture for tests, of a size that fits no stride."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH, FRAMES = 37, 53, 6  # primes


def clip(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8: coloured bands that move."""
    rows, columns = np.mgrid[:height, :width]
    pictures = [
        np.stack([(columns * 5 + 9 * n) % 256, (rows * 7) % 256, (rows + columns + 40 * n) % 256], axis=-1)
        for n in range(frames)
    ]
    return np.stack(pictures).astype(np.uint8)
