"""Export and verification of small classifiers beside a codec with a codebook: agreement with torch, lies caught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from _registered import registered
from torch import Tensor, nn

from latentseg.engine.bundle import Bundle, load_bundle
from latentseg.engine.placement import Placement
from latentseg.engine.roles import Classifier, Compressor, Decompressor, RgbClassifier
from latentseg.errors import ArtifactError, UsageError, VerificationError
from latentseg.export import verify
from latentseg.export.assemble import export_bundle
from latentseg.models import registry
from latentseg.training.checkpoint import Weights
from latentseg.training.data import camvid_classes

NAMES = ["cat", "dog", "newt", "owl", "pike", "rook", "toad"]
SIZES = [(1, 1), (8, 8), (13, 70), (41, 67)]


class TinyClassifier(nn.Module):
    """A strided convolution, and the mean of what it gives: the least that has a classifier's interface."""

    def __init__(self, channels: int, stride_in: int, classes: int) -> None:
        super().__init__()
        self.stride_in, self.classes = stride_in, classes
        self.conv = nn.Conv2d(channels, 40, 3, stride=2, padding=1)
        self.head = nn.Linear(40, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return logits


def tiny_rgb(classes: int = 7) -> TinyClassifier:
    return TinyClassifier(3, 1, classes)


def tiny_latent(channels: int, classes: int = 7) -> TinyClassifier:
    return TinyClassifier(channels, 8, classes)


@pytest.fixture(scope="module", autouse=True)
def networks() -> Iterator[None]:
    """The tiny networks by their names, for these tests alone."""
    rgb, latent = "tiny-rgb-classifier", "tiny-latent-classifier"
    with registered((rgb, "rgb_classifier", tiny_rgb), (latent, "latent_classifier", tiny_latent)):
        yield


def weights(network: str, seed: int, codec: str = "", **options: int) -> Weights:
    """A network with random weights, as a finished training would leave it; the spread of its outputs is wide."""
    torch.manual_seed(seed)
    module = registry.create(network, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
    if hasattr(module, "head"):
        module.head.weight.data *= 4  # type: ignore[operator, union-attr]
    settings = {"codec": codec, "class_names": NAMES[: options.get("classes", 0)]}
    return Weights(network, dict(options), module.state_dict(), {"settings": settings, "steps": 0})


@pytest.fixture(scope="module")
def parts(networks: None) -> dict[str, Weights]:
    codec = weights("torfason-codec-c8", 1, width=8)
    return {
        "codec": codec,
        "classifier": weights("tiny-latent-classifier", 2, codec.content_id, channels=8, classes=7),
        "rgb_classifier": weights("tiny-rgb-classifier", 3, classes=7),
    }


@pytest.fixture(scope="module")
def bundle(parts: dict[str, Weights], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("export") / "small"
    return export_bundle(out, "small", **parts, size=(37, 53), largest=(96, 136), programs=True)  # type: ignore[arg-type]


def test_manifest_says_what_was_exported(bundle: Bundle, parts: dict[str, Weights]) -> None:
    manifest = bundle.manifest
    assert bundle.roles == ("compressor", "decompressor", "classifier", "rgb_classifier")
    assert [c.name for c in bundle.classes] == NAMES
    centres = np.sort(parts["codec"].tensors["quantiser.centres"].numpy())
    assert bundle.codec.scaling.centres == tuple(centres.tolist())
    assert (bundle.codec.bits, bundle.codec.tile) == (3, (48, 64))
    assert set(manifest["verification"]["models"]) == set(bundle.roles)
    row = manifest["verification"]["models"]["classifier"][0]
    assert row["shape"] == [1, 8, 8]
    assert row["probability_error"] < 1e-4
    for role, values in (("classifier", "latent"), ("rgb_classifier", "frames")):
        model = onnx.load(bundle.model_path(role))
        assert (model.graph.input[0].name, model.graph.output[0].name) == (values, "probabilities")
        assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 7
        assert bundle.variants(role) == ("fp32", "torch")
    # A convolution of 8 -> 40 channels on a quarter of the latent's positions, and the linear layer once a frame.
    by_hand = 9 * 8 * 40 / 64 / 4 + 40 * 7 / 256**2
    assert manifest["files"]["classifier"]["macs_per_pixel"] == pytest.approx(by_hand)


@pytest.mark.parametrize("size", SIZES)
def test_deployed_models_agree_with_torch(bundle: Bundle, parts: dict[str, Weights], size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3)).astype(np.uint8)
    codec, latent, rgb = (parts[k].build() for k in ("codec", "classifier", "rgb_classifier"))
    padded = np.pad(frames, ((0, 0), (0, -size[0] % 8), (0, -size[1] % 8), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(0, 3, 1, 2).float() / 255
    header = bundle.header(*size)
    with torch.no_grad():
        q = codec.quantised(codec.compress(x))  # type: ignore[operator]
        decoded = codec.decompress(q)  # type: ignore[operator]
    with Compressor(bundle) as compressor:
        payloads = compressor.encode(frames, header)
    for placement in (Placement(), Placement("torch", provider="cpu")):
        with Classifier(bundle, placement) as role:
            received = role.entropy_decode(payloads, header)
            assert (received != q.numpy()).mean() < 1e-2
            found = role.probabilities(received, size)
            with torch.no_grad():
                expected = torch.softmax(latent(torch.from_numpy(received)), 1).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)
        with RgbClassifier(bundle, placement) as role_rgb:
            with torch.no_grad():
                expected = torch.softmax(rgb(x), 1).numpy()
            np.testing.assert_allclose(role_rgb.probabilities(frames), expected, atol=1e-5)
    with Decompressor(bundle) as decompressor:
        truth = (decoded * 255).round().permute(0, 2, 3, 1).numpy()[:, : size[0], : size[1]]
        differs = np.abs(decompressor.frames(q.numpy(), size) - truth)
        assert differs.max() <= 1


def test_verify_uses_the_reference(bundle: Bundle) -> None:
    found = verify.verify_bundle(bundle, sizes=((1, 1, 1), (3, 24, 40)))
    assert set(found["reference"]) == {
        "symbols_differ", "frames_differ", "probabilities_top1_differ", "probabilities_probability_error",
        "rgb_probabilities_top1_differ", "rgb_probabilities_probability_error",
    }  # fmt: skip
    assert found["reference"]["probabilities_top1_differ"] == 0
    assert found["entropy 3x24x40"]["symbols"] == "exact"
    assert found["classifier 3x24x40"]["probability_error"] < 1e-4


@pytest.mark.parametrize(
    ("key", "change", "says"),
    [
        ("probabilities", lambda p: p[:, ::-1], "reference, classifier against torch: probabilities differ by"),
        ("probabilities", lambda p: p * np.float32(1.01), "probabilities differ by 0.99"),
        ("rgb_probabilities", lambda p: p + np.float32("nan"), "rgb_classifier against torch: probabilities .* by nan"),
    ],
)  # fmt: skip
def test_verify_catches_other_outputs(bundle: Bundle, tmp_path: Path, key: str, change: object, says: str) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    reference = manifest["verification"]["reference"]
    recorded = verify.unpack_array(reference[key], (2, 7), "f4")
    np.testing.assert_allclose(recorded.sum(1), 1, atol=1e-5)
    reference[key] = verify.pack_array(change(recorded))  # type: ignore[operator]
    for file in bundle.path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=says):
        verify.verify_bundle(load_bundle(tmp_path), sizes=((1, 8, 8),))


def test_verify_catches_what_is_no_probability(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.Classifier, "probabilities", lambda *_: np.full((1, 7), 0.2, np.float32))
    with pytest.raises(VerificationError, match=r"classifier at 1x8x8: probabilities sum to 1 within 0\.4"):
        verify.verify_bundle(bundle, sizes=((1, 8, 8),))


def test_half_weights(parts: dict[str, Weights], bundle: Bundle, tmp_path: Path) -> None:
    half = export_bundle(
        tmp_path / "half", "half", parts["codec"], classifier=parts["classifier"],
        size=(16, 16), largest=(24, 24), half_weights=True,
    )  # fmt: skip
    assert half.model_path("compressor").read_bytes() == bundle.model_path("compressor").read_bytes()
    types = {t.data_type for t in onnx.load(half.model_path("classifier")).graph.initializer if np.prod(t.dims) >= 1024}
    assert types == {onnx.TensorProto.FLOAT16}


def test_parts_must_belong_together(parts: dict[str, Weights], tmp_path: Path) -> None:
    codec, latent, rgb = parts["codec"], parts["classifier"], parts["rgb_classifier"]

    def export(**given: object) -> None:
        export_bundle(tmp_path / "out", "out", **{"codec": codec, **given})  # type: ignore[arg-type]

    def named(names: list[str] | None) -> Weights:
        return replace(rgb, facts={"settings": {"codec": "", "class_names": names} if names else {"codec": ""}})

    with pytest.raises(
        ArtifactError, match=r"classes are 7 \(cat, dog, newt, owl, \.\.\.\); the rgb_classifier's 7 \(d"
    ):
        export(classifier=latent, rgb_classifier=named([*NAMES[1:], "cat"]))
    three = weights("tiny-rgb-classifier", 3, classes=3)
    with pytest.raises(ArtifactError, match=r"the rgb_classifier's 3 \(cat, dog, newt\)"):
        export(classifier=latent, rgb_classifier=three)
    for names, count in ((NAMES[:6], 6), (None, 0)):
        with pytest.raises(ArtifactError, match=f"has 7 classes, and its training noted the names of {count}"):
            export(rgb_classifier=named(names))
    with pytest.raises(ArtifactError, match="is a rgb_classifier, it cannot be the bundle's classifier"):
        export(classifier=rgb)
    with pytest.raises(ArtifactError, match="the classifier was trained on the latents of codec"):
        export(codec=weights("torfason-codec-c8", 9, width=8), classifier=latent)
    wide = weights("torfason-codec-c16", 1, width=8)
    other = weights("tiny-latent-classifier", 2, wide.content_id, channels=8, classes=7)
    with pytest.raises(ArtifactError, match="does not take latents of 16 channels"):
        export(codec=wide, classifier=other)
    segmenter = weights("compact-rgb", 4, classes=11, width=8)
    with pytest.raises(UsageError, match="rgb_segmenter, classifier in one bundle, expected segmenters or classifiers"):
        export(classifier=latent, rgb_segmenter=segmenter, classes=camvid_classes())
    broken = {**codec.tensors, "quantiser.centres": torch.tensor([1.0, 2.0, float("nan"), 4.0, 5.0, 6.0])}
    with pytest.raises(ArtifactError, match="expected different finite numbers"):
        export(codec=replace(codec, tensors=broken))
    assert not (tmp_path / "out").exists()


def test_other_precisions_and_engines_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    from latentseg.export.precision import rewrite
    from latentseg.export.tensorrt import check_request

    frames = [np.zeros((16, 16, 3), np.uint8)] * 4
    with pytest.raises(UsageError, match="the classifier in int8: only segmenters are rewritten") as caught:
        rewrite(bundle, "classifier", "int8", tmp_path, frames)
    assert "classifiers run in fp32" in caught.value.hint
    with pytest.raises(UsageError, match="an engine of the rgb_classifier") as engine:
        check_request(bundle, "rgb_classifier", "fp32", "tensorrt", None, with_frames=False)
    assert "--backend onnxruntime" in engine.value.hint
