"""Data sets: layouts, label mapping, and what happens when files lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentseg.errors import InputError, UsageError
from latentseg.training import data


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two cities, one frame each, 4x6, in the layout of the original archives."""
    for city, value in (("aachen", 7), ("zurich", 26)):
        stem = f"{city}_000000_000019"
        write(tmp_path / "leftImg8bit/train" / city / f"{stem}_leftImg8bit.png", np.full((4, 6, 3), value, np.uint8))
        ids = np.full((4, 6), value, np.uint8)
        ids[0] = [0, 3, 11, 33, 31, 25]
        write(tmp_path / "gtFine/train" / city / f"{stem}_gtFine_labelIds.png", ids)
    return tmp_path


def test_cityscapes_ids_become_train_ids(cityscapes: Path) -> None:
    classes, pairs = data.labelled("cityscapes", cityscapes, "train")
    assert [p.image.parent.name for p in pairs] == ["aachen", "zurich"]
    images, labels = data.read_pairs(pairs, classes)
    assert images[1].shape == (4, 6, 3)
    # From the published table: road 7 -> 0, building 11 -> 2, rider 25 -> 12, car 26 -> 13, train 31 -> 16
    assert labels[0][0].tolist() == [255, 255, 2, 18, 16, 12]
    assert set(labels[0][1:].ravel()) == {0}
    assert set(labels[1][1:].ravel()) == {13}
    assert len(classes.names) == len(classes.colors) == 19
    # All 34 ids of the published table, in order: the train id of each, 255 where it is not evaluated.
    void = [255] * 7
    trained = [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18]
    assert classes.mapping[:34].tolist() == void + trained
    assert set(classes.mapping[34:]) == {255}


def test_cityscapes_missing_label(cityscapes: Path) -> None:
    next((cityscapes / "gtFine/train/zurich").iterdir()).unlink()
    with pytest.raises(InputError, match=r"zurich.*labelIds"):
        data.labelled("cityscapes", cityscapes, "train")


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write(tmp_path / "train" / f"{name}.png", np.zeros((4, 6, 3), np.uint8))
        label = np.arange(24, dtype=np.uint8).reshape(4, 6) % 13
        write(tmp_path / "trainannot" / f"{name}.png", label)
    (tmp_path / "train.txt").write_text("train/a.png trainannot/a.png\ntrain/b.png trainannot/b.png\n\n")
    return tmp_path


def test_camvid_ignores_unlabelled(camvid: Path) -> None:
    classes, pairs = data.labelled("camvid", camvid, "train")
    _, labels = data.read_pairs(pairs, classes)
    assert labels[0].ravel()[:13].tolist() == [*range(11), 255, 255]


def test_camvid_bad_listing(camvid: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'val'") as caught:
        data.labelled("camvid", camvid, "val")
    assert "train" in caught.value.hint
    (camvid / "train.txt").write_text("train/a.png\n")
    with pytest.raises(InputError, match="line 1"):
        data.labelled("camvid", camvid, "train")
    (camvid / "train.txt").write_text("")
    with pytest.raises(InputError, match="no labelled images"):
        data.labelled("camvid", camvid, "train")


def test_label_of_wrong_kind_or_size(camvid: Path) -> None:
    classes, pairs = data.labelled("camvid", camvid, "train")
    write(pairs[0].label, np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(InputError, match="one 8-bit channel"):
        data.read_pairs(pairs, classes)
    write(pairs[0].label, np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match=r"label is \(4, 5\)"):
        data.read_pairs(pairs, classes)
    pairs[0].label.write_bytes(b"no image at all")
    with pytest.raises(InputError, match="cannot read label"):
        data.read_pairs(pairs, classes)


def test_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        data.labelled("kitti", tmp_path, "train")
    assert "camvid" in caught.value.hint


def test_frames_from_a_folder(tmp_path: Path) -> None:
    for index in range(5):
        write(tmp_path / f"f{index}.png", np.full((3, 4, 3), index, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    assert [int(f[0, 0, 0]) for f in data.read_frames(tmp_path, every=2)] == [0, 2, 4]
    assert len(data.read_frames(tmp_path, limit=3)) == 3
    with pytest.raises(InputError, match="no such"):
        data.read_frames(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image or video"):
        data.read_frames(tmp_path / "empty")


@pytest.mark.shared
def test_camvid_as_it_is(shared_data: Path) -> None:
    classes, train = data.labelled("camvid", shared_data / "camvid", "train")
    _, val = data.labelled("camvid", shared_data / "camvid", "val")
    assert (len(train), len(val)) == (367, 101)
    assert not {p.image.name for p in train} & {p.image.name for p in val}
    images, labels = data.read_pairs(train[:2], classes)
    assert images[0].shape == (360, 480, 3)
    assert set(np.unique(labels[0])) <= {*range(11), 255}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC's folders with two images, 5x7 and 6x4; the labels are palette PNGs, those of trainaug grey ones."""
    rng = np.random.default_rng(0)
    palette = [channel for index in range(256) for channel in data.voc_color(index)]
    for name, shape in (("2007_000032", (5, 7)), ("2011_003271", (6, 4))):
        write(tmp_path / f"JPEGImages/{name}.jpg", rng.integers(0, 256, (*shape, 3)).astype(np.uint8))
        label = np.full(shape, 255, np.uint8)
        label.flat[:22] = np.arange(22)
        write(tmp_path / f"SegmentationClassAug/{name}.png", label // 2)
        image = Image.fromarray(label)
        image.putpalette(palette)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        image.save(tmp_path / f"SegmentationClass/{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2011_003271\n")
    (lists / "trainaug.txt").write_text("2011_003271\n\n2007_000032\n")
    return tmp_path


def test_voc_labels_are_palette_indices(voc: Path) -> None:
    classes, pairs = data.labelled("voc", voc, "train")
    images, labels = data.read_pairs(pairs, classes)
    assert [image.shape for image in images] == [(5, 7, 3), (6, 4, 3)]
    assert labels[0].ravel()[:23].tolist() == [*range(21), 255, 255]  # 21 is no class, 255 an outline
    assert (len(classes.names), len(set(classes.names))) == (21, 21)
    # From the published colour map.
    shown = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bicycle": (0, 128, 0), "bird": (128, 128, 0)}
    shown |= {"person": (192, 128, 128), "pottedplant": (0, 64, 0), "tvmonitor": (0, 64, 128), "chair": (192, 0, 0)}
    assert {name: dict(zip(classes.names, classes.colors, strict=True))[name] for name in shown} == shown
    assert data.voc_color(255) == (224, 224, 192)


def test_voc_trainaug_has_labels_of_its_own(voc: Path) -> None:
    classes, pairs = data.labelled("voc", voc, "trainaug")
    assert [p.image.stem for p in pairs] == ["2011_003271", "2007_000032"]
    _, labels = data.read_pairs(pairs, classes)
    assert labels[0].ravel()[:22].tolist() == [i // 2 for i in range(22)]


def test_voc_that_is_not_whole(voc: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'val' .*val\.txt is not there") as caught:
        data.labelled("voc", voc, "val")
    assert caught.value.hint == "splits found: train, trainaug"
    listing = voc / "ImageSets/Segmentation/train.txt"
    listing.write_text("2007_000032 1\n")
    with pytest.raises(InputError, match="line 1: expected 'id'"):
        data.labelled("voc", voc, "train")
    listing.write_text("2007_000033\n")
    with pytest.raises(InputError, match=r"missing file .*2007_000033\.jpg"):
        data.labelled("voc", voc, "train")
    with pytest.raises(InputError, match="no split 'train'"):
        data.labelled("voc", voc / "JPEGImages", "train")


def _pairs(names: list[str]) -> list[data.Pair]:
    return [data.Pair(Path("train") / name, Path("annot") / name) for name in names]


def test_carve_keeps_the_last_fifth_of_each_sequence_for_tuning() -> None:
    drives = {"0001TP": 62, "0006R0": 101, "0016E5": 204, "short": 4}
    names = [f"{drive}_{number:06d}.png" for drive, count in drives.items() for number in range(count)]
    shuffled = _pairs([names[i] for i in np.random.default_rng(0).permutation(len(names))])
    fit, tune = data.carve(shuffled, "fit"), data.carve(shuffled, "tune")
    for drive, count in drives.items():
        of = [[int(p.image.stem.split("_")[1]) for p in part if p.image.stem.startswith(drive)] for part in (fit, tune)]
        held = count // 5
        assert of[1] == list(range(count - held, count))
        assert of[0] == list(range(count - held - (held > 0)))  # without the neighbour of what is held out
    assert len(tune) == 12 + 20 + 40


def test_carve_refuses_other_parts_and_sequences_that_are_too_short() -> None:
    with pytest.raises(UsageError, match="no part 'test'"):
        data.carve(_pairs(["a_1.png"]), "test")
    with pytest.raises(InputError, match="no pairs to tune on: 3"):
        data.carve(_pairs(["a_1.png", "a_2.png", "b_1.png"]), "tune")


def test_a_split_may_name_its_part(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / "train" / f"s_{number}.png", np.zeros((4, 6, 3), np.uint8))
        write(tmp_path / "annot" / f"s_{number}.png", np.zeros((4, 6), np.uint8))
    lines = "".join(f"train/s_{number}.png annot/s_{number}.png\n" for number in range(10))
    (tmp_path / "train.txt").write_text(lines)
    root = tmp_path
    fit, tune = data.labelled("camvid", root, "train:fit")[1], data.labelled("camvid", root, "train:tune")[1]
    assert (len(fit), len(tune)) == (7, 2)
    assert data.labelled("camvid", root, "train")[1][: len(fit)] == fit
