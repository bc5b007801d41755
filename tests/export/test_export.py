"""Export and verification of small networks with random weights: files agree with torch, and lies are caught."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from latentseg.engine.bundle import Bundle, load_bundle
from latentseg.engine.roles import Compressor, Decompressor, RgbSegmenter, Segmenter
from latentseg.errors import ArtifactError, UsageError, VerificationError
from latentseg.export import verify
from latentseg.export.assemble import export_bundle
from latentseg.export.onnx import OPSET
from latentseg.models import registry
from latentseg.training import evaluate
from latentseg.training.checkpoint import Weights
from latentseg.training.data import camvid_classes
from latentseg.training.received import Encoder

CODEC = {"channels": 6, "width": 8, "encoder_units": 1, "decoder_units": 1}
NARROW = {"width": 8, "dilations": [1, 2]}


def random_weights(network: str, options: dict, seed: int, codec: str = "") -> Weights:
    """A network with random weights, batch-norm statistics included, as a finished training would leave it."""
    torch.manual_seed(seed)
    module = registry.create(network, **options)
    generator = torch.Generator().manual_seed(seed)
    if network == "compact-codec":
        patches = torch.rand(400, 192, generator=generator)
        module.pca_init(patches, step=20.0)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0.0, 0.2, generator=generator)
    facts = {"settings": {"codec": codec}, "steps": 0}
    return Weights(network, options, module.state_dict(), facts)


@pytest.fixture(scope="module")
def parts() -> dict[str, Weights]:
    codec = random_weights("compact-codec", CODEC, 1)
    latent = random_weights("compact-latent", {"classes": 11, "channels": 6, **NARROW}, 2, codec.content_id)
    return {
        "codec": codec,
        "segmenter": latent,
        "rgb_segmenter": random_weights("compact-rgb", {"classes": 11, **NARROW}, 3),
    }


@pytest.fixture(scope="module")
def bundle(parts: dict[str, Weights], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("export") / "small"
    return export_bundle(
        out, "small", parts["codec"], segmenter=parts["segmenter"], rgb_segmenter=parts["rgb_segmenter"],
        classes=camvid_classes(), size=(37, 53), largest=(96, 136), scores={"miou": 0.5}, description="random",
    )  # fmt: skip


def test_manifest_says_what_was_exported(bundle: Bundle, parts: dict[str, Weights]) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["codec"]["id"] == parts["codec"].content_id
    assert manifest["codec"]["scaling"] == {"mode": "fixed", "lo": -128.0, "hi": 127.0}
    assert [c["name"] for c in manifest["classes"]][:3] == ["sky", "building", "pole"]
    assert manifest["verification"]["opset"] == OPSET
    assert set(manifest["verification"]["models"]) == {"compressor", "decompressor", "segmenter", "rgb_segmenter"}
    for role in bundle.roles:
        model = onnx.load(bundle.model_path(role))
        onnx.checker.check_model(model)
        assert {o.version for o in model.opset_import if o.domain == ""} == {OPSET}
        assert str(Path(__file__).parents[2]).encode() not in bundle.model_path(role).read_bytes()
        assert not any(o.domain not in {"", "ai.onnx"} for o in model.opset_import)  # nothing a plain runtime lacks
        dims = model.graph.input[0].type.tensor_type.shape.dim
        assert dims[0].dim_param  # dynamic batch
    # 1x1 entry of 192 -> 8, two 3x3 of 8 -> 8, exits 8 -> 6, linear 192 -> 6, all at 1/64 of the pixels.
    by_hand = (192 * 8 + 2 * 9 * 8 * 8 + 8 * 6 + 192 * 6) / 64
    assert manifest["files"]["compressor"]["macs_per_pixel"] == pytest.approx(by_hand)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (41, 67)])
def test_deployed_models_agree_with_torch(bundle: Bundle, parts: dict[str, Weights], size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    codec, latent, rgb = (parts[k].build() for k in ("codec", "segmenter", "rgb_segmenter"))
    padded = np.pad(frames, ((0, 0), (0, -size[0] % 8), (0, -size[1] % 8), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        z = codec.compress(x)
        q = z.round().clamp(-128, 127)
        decoded = codec.decompress(q)
        expected = [
            torch.nn.functional.interpolate(m, scale_factor=2, mode="bilinear").argmax(1) for m in (latent(q), rgb(x))
        ]
    header = bundle.header(*size)
    with Compressor(bundle) as compressor:
        np.testing.assert_allclose(compressor.latents(frames), z.numpy(), atol=1e-3)
        payloads = compressor.encode(frames, header)
    with Segmenter(bundle) as segmenter:
        received = segmenter.entropy_decode(payloads, header)
        assert (received != q.numpy()).mean() < 1e-3
        found = segmenter.labels(received, size)
    assert (found != expected[0][:, : size[0], : size[1]].numpy()).mean() < 5e-3
    with RgbSegmenter(bundle) as segmenter_rgb:
        assert (segmenter_rgb.labels(frames) != expected[1][:, : size[0], : size[1]].numpy()).mean() < 5e-3
    with Decompressor(bundle) as decompressor:
        rgb8 = decompressor.frames(received, size)
    truth = (decoded * 255).round().permute(0, 2, 3, 1).numpy()[:, : size[0], : size[1]]
    assert np.abs(rgb8 - truth).max() <= 1
    # What `eval` scores in torch is what is deployed.
    for frame, labels, image in zip(frames, found, rgb8, strict=True):
        assert (evaluate.predict(latent, Encoder(codec), frame) != labels).mean() < 5e-3
        assert np.abs(evaluate.decoded_by(codec)(frame) - image.astype(np.int16)).max() <= 1


def test_verify_passes_and_uses_the_reference(bundle: Bundle) -> None:
    found = verify.verify_bundle(bundle, sizes=((1, 1, 1), (2, 24, 40)))
    assert found["reference"]["symbols_differ"] < verify.MAX_SYMBOL_SHARE
    assert set(found["reference"]) == {"symbols_differ", "labels_differ", "rgb_labels_differ", "frames_differ"}
    assert found["entropy 2x24x40"]["symbols"] == "exact"


def test_verify_catches_other_weights(bundle: Bundle, parts: dict[str, Weights], tmp_path: Path) -> None:
    """A model of the right interface but other weights, with its hash made to fit: only the reference can tell."""
    other = random_weights("compact-latent", parts["segmenter"].options, 99, parts["codec"].content_id)
    fake = export_bundle(
        tmp_path / "fake",
        "fake",
        parts["codec"],
        segmenter=other,
        classes=camvid_classes(),
        size=(16, 16),
        largest=(24, 24),
    )
    manifest = json.loads((fake.path / "manifest.json").read_text())
    manifest["verification"]["reference"]["labels"] = bundle.manifest["verification"]["reference"]["labels"]
    (fake.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="segmenter labels differ"):
        verify.verify_bundle(load_bundle(fake.path), sizes=((1, 8, 8),))
    # The decompressor, too: here its recorded frames are 3 levels darker than what it makes.
    reference = manifest["verification"]["reference"]
    del reference["labels"]
    frames = verify.unpack_array(reference["frames"], (2, 64, 96, 3))
    reference["frames"] = verify.pack_array(np.where(frames > 3, frames - 3, frames))
    (fake.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="decompressed values differ"):
        verify.verify_bundle(load_bundle(fake.path), sizes=((1, 8, 8),))
    for size in (None, [2, 64], [2, 64, "x"], [0, 64, 96], [2, 64, 10**9]):
        reference["size"] = size
        (fake.path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError, match="no size"):
            verify.verify_bundle(load_bundle(fake.path), sizes=((1, 8, 8),))


def test_export_fails_closed_on_disagreement(
    parts: dict[str, Weights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentseg.engine.backends import onnxruntime as backend

    original = backend.OnnxRuntimeBackend._run

    def wrong(self: backend.OnnxRuntimeBackend, array: np.ndarray) -> np.ndarray:
        return original(self, array) + np.float32(1.0)

    monkeypatch.setattr(backend.OnnxRuntimeBackend, "_run", wrong)
    with pytest.raises(VerificationError, match="compressor at 1x8x8"):
        export_bundle(tmp_path / "out", "x", parts["codec"], size=(16, 16), largest=(24, 24))
    assert not (tmp_path / "out").exists()


def test_half_weights_halve_the_segmenters_and_leave_the_codec(
    parts: dict[str, Weights], bundle: Bundle, tmp_path: Path
) -> None:
    half = export_bundle(
        tmp_path / "half",
        "half",
        parts["codec"],
        segmenter=parts["segmenter"],
        classes=camvid_classes(),
        size=(16, 16),
        largest=(24, 24),
        half_weights=True,
    )
    assert half.model_path("compressor").read_bytes() == bundle.model_path("compressor").read_bytes()
    tensors = onnx.load(half.model_path("segmenter")).graph.initializer
    assert {t.data_type for t in tensors if np.prod(t.dims) >= 1024} == {onnx.TensorProto.FLOAT16}
    saved = sum(2 * int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT16)
    sizes = [b.model_path("segmenter").stat().st_size for b in (bundle, half)]
    assert saved - 1000 < sizes[0] - sizes[1] <= saved  # what the casts take is small
    latents = np.random.default_rng(0).integers(-4, 5, (2, 6, 12, 17)).astype(np.float32)
    with Segmenter(bundle) as whole, Segmenter(half) as rounded:
        assert (whole.labels(latents, (96, 136)) != rounded.labels(latents, (96, 136))).mean() < 5e-3


def test_parts_must_belong_together(parts: dict[str, Weights], tmp_path: Path) -> None:
    stranger = random_weights("compact-codec", CODEC, 7)
    with pytest.raises(ArtifactError, match="trained on the latents of codec"):
        export_bundle(tmp_path / "a", "a", stranger, segmenter=parts["segmenter"], classes=camvid_classes())
    with pytest.raises(ArtifactError, match="cannot be the bundle's rgb_segmenter"):
        export_bundle(tmp_path / "b", "b", parts["codec"], rgb_segmenter=parts["segmenter"], classes=camvid_classes())
    paper = random_weights("kakaiya-codec-d1", {}, 1)
    latent = random_weights("compact-latent", {"classes": 11, "channels": 16, **NARROW}, 2, paper.content_id)
    with pytest.raises(ArtifactError, match="1/4 resolution, 'compact-latent' expects 1/8"):
        export_bundle(tmp_path / "d", "d", paper, segmenter=latent, classes=camvid_classes())
    with pytest.raises(UsageError, match="needs its classes"):
        export_bundle(tmp_path / "c", "c", parts["codec"], segmenter=parts["segmenter"])


def test_reference_text_round_trip_and_lies() -> None:
    array = np.random.default_rng(0).integers(0, 11, (2, 5, 7)).astype(np.uint8)
    text = verify.pack_array(array)
    assert np.array_equal(verify.unpack_array(text, (2, 5, 7)), array)
    for lie, shape in ((text, (2, 5, 8)), (text, (2, 5, 6)), ("not base64!", (1,)), ("AAAA", (1,))):
        with pytest.raises(ArtifactError):
            verify.unpack_array(lie, shape)


def test_synthetic_frames_are_the_same_everywhere() -> None:
    import hashlib

    frames = verify.synthetic_frames(2, 64, 96)
    assert frames.dtype == np.uint8
    # By hand, pixel (n=0, y=11, x=7, c=2): ramp (33 + 21) // 4 = 13; stripes ((1 + 1) % 3) * 50 * 3 // 2 = 150.
    assert frames[0, 11, 7, 2] == 163
    # Golden: a change of these frames would make every manifest's reference wrong.
    assert hashlib.sha256(frames.tobytes()).hexdigest().startswith("7c2e0c557051d875")
