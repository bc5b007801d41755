"""Exported programs of small networks with random weights: the network's values, and nothing of the machine."""

from __future__ import annotations

import getpass
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentseg.cli import main
from latentseg.engine.backends import open_backend
from latentseg.engine.bundle import load_bundle
from latentseg.engine.placement import Placement
from latentseg.engine.roles import Compressor, Decompressor
from latentseg.errors import VerificationError
from latentseg.export.graphs import CompressorGraph, LabelsGraph
from latentseg.export.onnx import Exported
from latentseg.export.program import verify_program, write_program
from latentseg.models import registry
from latentseg.training.checkpoint import save_weights

OPTIONS = {"channels": 6, "width": 8, "encoder_units": 1, "decoder_units": 1}


def create(network: str, seed: int, **options: object) -> nn.Module:
    """A network with random weights, batch-norm statistics included, in eval mode."""
    torch.manual_seed(seed)
    module = registry.create(network, **options).eval()
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_(0.0, 0.2)
    return module


@pytest.fixture(scope="module")
def codec() -> nn.Module:
    return create("compact-codec", 1, **OPTIONS)


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    return create("compact-latent", 2, classes=11, channels=6, width=8, dilations=[1, 2])


@pytest.fixture(scope="module")
def exported(codec: nn.Module, segmenter: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("programs")
    graphs = {"compressor": CompressorGraph(codec).eval(), "segmenter": LabelsGraph(segmenter, rgb=False).eval()}
    return {
        role: Exported(role, write_program(graph, folder / f"{role}.pt2", role, 6, 8), graph, 6, 8, 0.0, 0)
        for role, graph in graphs.items()
    }


def test_same_values_as_the_network_at_any_size(
    exported: dict[str, Exported], codec: nn.Module, segmenter: nn.Module
) -> None:
    """Down to one stride by one, which tracing took for impossible; against the bare networks, not the graphs."""
    rng = np.random.default_rng(0)
    with (
        open_backend(exported["compressor"].path, "torch", provider="cpu") as compressor,
        open_backend(exported["segmenter"].path, "torch", provider="cpu") as labeller,
        torch.no_grad(),
    ):
        assert str(compressor.input) == "frames: uint8[?, ?, ?, 3]"
        assert str(compressor.output) == "output: float32[?, 6, ?, ?]"
        assert str(labeller.input) == "latent: float32[?, 6, ?, ?]"
        assert str(labeller.output) == "output: uint8[?, ?, ?]"
        for n, height, width in ((1, 8, 8), (1, 8, 24), (3, 40, 8), (2, 56, 72)):
            frames = rng.integers(0, 256, (n, height, width, 3)).astype(np.uint8)
            truth = codec.compress(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255)  # type: ignore[operator]
            np.testing.assert_allclose(compressor.run(frames), truth.numpy(), atol=1e-4)
            latent = rng.normal(0, 2, (n, 6, height // 8, width // 8)).astype(np.float32)
            logits = segmenter(torch.from_numpy(latent))
            full = nn.functional.interpolate(logits, size=(height, width), mode="bilinear")
            assert (labeller.run(latent) != full.argmax(1).numpy()).mean() < 2e-3


def test_a_program_names_nothing_of_the_machine(exported: dict[str, Exported]) -> None:
    repository = Path(__file__).resolve().parents[2]
    names = [str(repository), str(Path.home()), str(Path(torch.__file__).parent), "site-packages", "latentseg", ".py"]
    if len(getpass.getuser()) > 4 or getpass.getuser() == "root":
        names.append(f"/{getpass.getuser()}")
    for model in exported.values():
        with zipfile.ZipFile(model.path) as archive:
            assert any(name.endswith("models/model.json") for name in archive.namelist())
            for entry in archive.infolist():
                assert not [name for name in names if name.encode() in archive.read(entry)], entry.filename
            (graph,) = (json.loads(archive.read(n)) for n in archive.namelist() if n.endswith("models/model.json"))
        nodes = graph["graph_module"]["graph"]["nodes"]
        assert len(nodes) > 10
        # What names a device would keep the program on the one that it was exported on.
        assert not [node["target"] for node in nodes if "assert" in node["target"] or "autocast" in node["target"]]
        assert not [node["metadata"] for node in nodes if set(node["metadata"]) - {"nn_module_stack", "torch_fn"}]


def test_verification_catches_other_weights(exported: dict[str, Exported]) -> None:
    model = exported["segmenter"]
    found = verify_program(model, model.path, [(1, 8, 8), (2, 24, 40)])
    assert found == {"torch": torch.__version__, "shapes": [[1, 8, 8], [2, 24, 40]], "equal": "bit for bit"}
    other = create("compact-latent", 3, classes=11, channels=6, width=8, dilations=[1, 2])
    with pytest.raises(VerificationError, match="program of the segmenter at 2x24x40"):
        verify_program(replace(model, graph=LabelsGraph(other, rgb=False).eval()), model.path, [(2, 24, 40)])


def test_export_with_programs(codec: nn.Module, tmp_path: Path) -> None:
    """A bundle of a codec alone: both programs are in the manifest, and code as the ONNX files do."""
    facts = {"settings": {"codec": ""}, "steps": 0}
    save_weights(tmp_path / "model.safetensors", "compact-codec", OPTIONS, dict(codec.state_dict()), facts)
    argv = ["export", "--codec", str(tmp_path), "--size", "16", "24", "--largest", "24", "40", "--programs", "-q"]
    assert main([*argv, "-o", str(tmp_path / "out")]) == 0
    bundle = load_bundle(tmp_path / "out")
    for role in ("compressor", "decompressor"):
        assert bundle.variants(role) == ("fp32", "torch")
        report = bundle.manifest["variants"][role]["torch"]["report"]
        assert report["shapes"] == [[1, 8, 8], [2, 16, 24], [1, 24, 40]]
    frames = np.random.default_rng(1).integers(0, 256, (2, 19, 37, 3)).astype(np.uint8)
    on_torch = Placement("torch", provider="cpu")
    with Compressor(bundle) as onnx, Compressor(bundle, on_torch) as program:
        latents = onnx.latents(frames)
        np.testing.assert_allclose(program.latents(frames), latents, atol=1e-3)
    with Decompressor(bundle) as onnx, Decompressor(bundle, on_torch) as program:
        found, expected = (role.frames(latents, (19, 37)).astype(np.int16) for role in (program, onnx))
        assert np.abs(found - expected).max() <= 1
