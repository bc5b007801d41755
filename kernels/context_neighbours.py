"""What coders 2 and 3 predict from, on whole tiles: neighbours, errors, levels; within a frame, in the one before.

Of the NumPy reference (context_reference.py); docs/format.md has the rules.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bitstream import context_model as model
from ..bitstream.context_payload import PREDICTED, PREVIOUS, TilePlan, prediction

Ints = NDArray[np.int64]

MOST_AROUND = 255  # levels beyond are one


class History(NamedTuple):
    """What a frame leaves to the next one: uint8 (C, h, w) both; errors are absolute, 0 in constant channels."""

    symbols: NDArray[np.uint8]
    errors: NDArray[np.uint8]


class Neighbours(NamedTuple):
    """What lies left, two left, above, above left and above right, each of the shape of the tiles."""

    w: Ints
    ww: Ints
    n: Ints
    nw: Ints
    ne: Ints


def neighbours(tiles: Ints, start: Ints) -> Neighbours:
    """The neighbours of every position of int64 (lanes, rows, columns); start (lanes,) stands before the first one."""
    w, ww, n, nw, ne = (np.empty_like(tiles) for _ in range(5))
    w[:, :, 1:] = tiles[:, :, :-1]
    w[:, 1:, 0] = tiles[:, :-1, 0]
    w[:, 0, 0] = start
    n[:, 1:] = tiles[:, :-1]
    n[:, 0] = w[:, 0]
    ww[:, :, 1:] = w[:, :, :-1]
    ww[:, :, 0] = w[:, :, 0]
    nw[:, :, 1:] = n[:, :, :-1]
    nw[:, :, 0] = n[:, :, 0]
    ne[:, :, :-1] = n[:, :, 1:]
    ne[:, :, -1] = n[:, :, -1]
    nw[:, 0] = ne[:, 0] = w[:, 0]
    return Neighbours(w, ww, n, nw, ne)


def median(w: Ints, n: Ints, nw: Ints) -> Ints:
    """The median of W, N and W + N - NW."""
    low, high = np.minimum(w, n), np.maximum(w, n)
    result: Ints = np.clip(w + n - nw, low, high)
    return result


def activity(w: Ints, ww: Ints, n: Ints, ne: Ints) -> Ints:
    """The weighted sum of the neighbours' absolute errors."""
    return 2 * w + ww + 2 * n + ne


def around(errors: NDArray[np.uint8]) -> Ints:
    """The sum t of a frame's absolute errors (..., h, w): twice that of a place and its four neighbours', at most 255.

    A neighbour outside the channel counts as the place itself.
    """
    wide = errors.astype(np.int64)
    padded = np.pad(wide, [(0, 0)] * (wide.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    n, s, w, e = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    sums: Ints = np.minimum(2 * wide + n + s + w + e, MOST_AROUND)
    return sums


def errors_of(tiles: Ints, mode: Ints, centre: Ints, bits: int, previous: Ints | int = 0) -> Ints:
    """Errors against the prediction, int64 (lanes, rows, columns); mode, centre (lanes,); previous as tiles."""
    near = neighbours(tiles, centre)
    by = prediction(mode)[:, None, None]
    predicted = np.where(by == PREDICTED, median(near.w, near.n, near.nw), centre[:, None, None])
    predicted = np.where(by == PREVIOUS, previous, predicted)
    half = 1 << (bits - 1)
    return ((tiles - predicted + half) & (2 * half - 1)) - half


def levels_of(errors: Ints, mode: Ints, t: Ints | int = 0) -> Ints:
    """Levels of errors' neighbourhoods, of their shape; t as they: what `around` says, where the tables follow it."""
    near = neighbours(np.abs(errors), start_errors(mode))
    return model.level(activity(near.w, near.ww, near.n, near.ne) + t)


def start_errors(mode: Ints) -> Ints:
    """What a lane's first symbol finds about it, by mode."""
    return np.where(prediction(mode) == PREDICTED, model.START_ERROR, 0)


def cut(channel: Ints, plan: TilePlan, rows: int, columns: int, which: Ints) -> Ints:
    """Tiles of one shape out of int64 (h, w): (tiles, rows, columns)."""
    y, x = plan.top[which, None] + np.arange(rows), plan.left[which, None] + np.arange(columns)
    tiles: Ints = channel[y[:, :, None], x[:, None, :]]
    return tiles


def paste(planes: NDArray[np.uint8], channel: Ints, plan: TilePlan, tile: Ints, tiles: Ints) -> None:
    """Puts tiles of one shape into uint8 (C, h, w); channel, tile (tiles,) say where each belongs."""
    _, rows, columns = tiles.shape
    y, x = plan.top[tile, None] + np.arange(rows), plan.left[tile, None] + np.arange(columns)
    planes[channel[:, None, None], y[:, :, None], x[:, None, :]] = tiles
