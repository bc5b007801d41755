"""What a latent segmenter takes over from an RGB one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latentseg.errors import ArtifactError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.augment import to_float
from latentseg.training.lend import fit_unpacking, lend_entry, lend_trunk
from latentseg.training.received import requantise
from latentseg.training.train_segmenter import fill_from

RNG = np.random.default_rng(3)
FRAMES = [RNG.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((24, 32), (17, 40), (8, 8), (64, 48))]


@pytest.fixture(scope="module")
def codec() -> torch.nn.Module:
    torch.manual_seed(0)
    codec = registry.create("compact-codec", channels=6, width=8)
    patches = torch.rand(300, 192)
    codec.pca_init(patches, step=40.0)
    return codec


def test_the_unpacking_is_the_least_squares_fit(codec: torch.nn.Module) -> None:
    weight, bias = fit_unpacking(codec, FRAMES)
    assert (weight.shape, bias.shape) == ((192, 6), (192,))
    rows, targets = [], []
    for frame in FRAMES:
        h, w = frame.shape[:2]
        padded = np.pad(frame, ((0, -h % 8), (0, -w % 8), (0, 0)), mode="edge")
        x = to_float(padded)[None]
        with torch.no_grad():
            z = requantise(codec.compress(x), 8, codec.scaling)[0]
        rows.append(z.flatten(1).T.numpy())
        blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, 3).transpose(0, 2, 4, 1, 3)
        targets.append(blocks.reshape(-1, 192) / 255.0)
    design = np.concatenate(rows).astype(np.float64)
    design = np.concatenate([design, np.ones((len(design), 1))], 1)
    expected, *_ = np.linalg.lstsq(design, np.concatenate(targets), rcond=None)
    np.testing.assert_allclose(weight.numpy(), expected[:-1].T, atol=2e-4)
    np.testing.assert_allclose(bias.numpy(), expected[-1], atol=2e-3)


def test_fitting_leaves_the_codec_to_be_trained(codec: torch.nn.Module) -> None:
    codec.train()
    fit_unpacking(codec, FRAMES[:1])
    assert codec.training
    assert all(p.requires_grad for p in codec.parameters())


def test_a_student_starts_as_its_giver_on_unpacked_frames(tmp_path: Path, codec: torch.nn.Module) -> None:
    torch.manual_seed(1)
    options = {"classes": 3, "width": 16, "dilations": [1]}
    rgb = registry.create("compact-rgb", **options).eval()
    path = tmp_path / "rgb.safetensors"
    checkpoint.save_weights(path, "compact-rgb", options, rgb.state_dict(), {"settings": {}})
    student = registry.create("compact-unpacked", channels=6, root=4, **options).eval()
    fill_from(student, path, "compact-unpacked", "latent_segmenter", codec, FRAMES)
    weight, bias = fit_unpacking(codec, FRAMES)
    z = torch.randn(1, 6, 3, 5)
    with torch.no_grad():
        image = F.pixel_shuffle(F.conv2d(z, weight[:, :, None, None], bias), 8)
        torch.testing.assert_close(student(z), rgb(image), rtol=1e-4, atol=1e-4)


def test_an_entry_cannot_be_wider_than_its_giver(codec: torch.nn.Module) -> None:
    rgb = registry.create("compact-rgb", width=16)
    student = registry.create("compact-unpacked", channels=6, width=16, root=5)
    with pytest.raises(ArtifactError, match="an entry of 5 first channels cannot start as one of 4"):
        lend_entry(rgb, student, codec, FRAMES)


def test_other_entries_are_left_alone(codec: torch.nn.Module) -> None:
    rgb = registry.create("compact-rgb", width=16)
    student = registry.create("compact-latent", channels=6, width=16)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    lend_entry(rgb, student, codec, FRAMES)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    with pytest.raises(ArtifactError, match="do not share a trunk"):
        lend_trunk(rgb, registry.create("compact-latent", width=8), "the teacher", "compact-latent")
