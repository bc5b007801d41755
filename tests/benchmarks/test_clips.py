"""Frames find their labels by name, from folders and from files of pairs, and every mismatch is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentseg.benchmarks.clips import load_clip, read_pairs
from latentseg.errors import InputError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three frames under names whose natural and alphabetic order differ, each filled with its own number."""
    for sub in ("img", "lab"):
        (tmp_path / sub).mkdir()
    for value, name in ((2, "f2"), (9, "f9"), (10, "f10")):
        Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(tmp_path / "img" / f"{name}.png")
        Image.fromarray(np.full((5, 7), value, np.uint8)).save(tmp_path / "lab" / f"{name}.png")
    lines = "img/f10.png lab/f10.png\n\nimg/f2.png   lab/f2.png\n"
    (tmp_path / "pairs.txt").write_text(lines)
    return tmp_path


def values(arrays: list[np.ndarray] | None) -> list[int]:
    return [int(array.flat[0]) for array in arrays or []]


def test_folder_of_labels_by_name(folder: Path) -> None:
    clip = load_clip(folder / "img", folder / "lab")
    assert values(clip.frames) == values(clip.labels) == [2, 9, 10]
    assert clip.size == (5, 7)
    assert (clip.name, clip.labels_name, clip.video) == ("img", "lab", None)
    assert clip.notes == []
    cut = load_clip(folder / "img", folder / "lab", frames=2)
    assert values(cut.labels) == [2, 9]
    assert "only the first 2 of about 3 frames" in cut.notes[0]


def test_file_of_pairs_as_source_and_as_labels(folder: Path) -> None:
    clip = load_clip(folder / "pairs.txt")
    assert values(clip.frames) == values(clip.labels) == [10, 2]
    assert clip.name == f"{folder.name}/pairs.txt"
    assert "only the first 1 of 2 pairs" in load_clip(folder / "pairs.txt", frames=1).notes[0]
    with pytest.raises(InputError, match="no labels for the image 'f9'"):
        load_clip(folder / "img", folder / "pairs.txt")
    (folder / "img" / "f9.png").unlink()
    assert values(load_clip(folder / "img", folder / "pairs.txt").labels) == [2, 10]
    with pytest.raises(UsageError, match="its own labels"):
        load_clip(folder / "pairs.txt", folder / "lab")


def test_single_image(folder: Path) -> None:
    clip = load_clip(folder / "img" / "f9.png", folder / "lab")
    assert values(clip.frames) == values(clip.labels) == [9]


def test_labels_of_a_video_come_in_natural_order(folder: Path) -> None:
    import av

    path = folder / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    for value in (2, 9, 10):
        Image.fromarray(np.full((16, 16), value, np.uint8)).save(folder / "lab" / f"f{value}.png")
    assert values(load_clip(path, folder / "lab").labels) == [2, 9, 10]


def test_palette_labels_keep_their_numbers(folder: Path) -> None:
    image = Image.fromarray(np.full((5, 7), 3, np.uint8), mode="L").convert("P")
    image.putpalette([200, 100, 50] * 256)
    image.putdata([3] * 35)
    image.save(folder / "lab" / "f2.png")
    assert values(load_clip(folder / "img", folder / "lab").labels) == [3, 9, 10]


def test_wrong_labels(folder: Path) -> None:
    target = folder / "lab" / "f9.png"
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(target)
    with pytest.raises(InputError, match="5x8, expected 5x7"):
        load_clip(folder / "img", folder / "lab")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(target)
    with pytest.raises(InputError, match="mode RGB"):
        load_clip(folder / "img", folder / "lab")
    target.write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot read the labels"):
        load_clip(folder / "img", folder / "lab")
    target.unlink()
    with pytest.raises(InputError, match="no labels for the image 'f9'"):
        load_clip(folder / "img", folder / "lab")
    with pytest.raises(InputError, match="cannot read the pairs"):
        load_clip(folder / "img", folder / "nowhere")


def test_wrong_pairs(folder: Path) -> None:
    path = folder / "bad.txt"
    for text, message in (("", "names no pairs"), ("a b\nc\n", "line 2: 1 words"), ("a b c", "3 words")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_pairs(path)
    Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(folder / "img" / "f2.png")
    with pytest.raises(InputError, match="one size is measured"):
        load_clip(folder / "pairs.txt")
    with pytest.raises(UsageError, match="at least 1"):
        load_clip(folder / "img", frames=0)
