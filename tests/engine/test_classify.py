"""Classification from end to end on the tiny bundle: probabilities against NumPy, and all that a classifier refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from _tiny_bundle import (
    CLASSES,
    CLASSIFYING,
    KINDS,
    ROLES,
    block_means,
    frame_means,
    probabilities,
    symbols,
    write_tiny_bundle,
)
from PIL import Image

from latentseg.bitstream import Scaling
from latentseg.engine import Bundle, ClassInfo, Engine, load_bundle, write_bundle
from latentseg.engine.bundle import add_variant
from latentseg.engine.placement import Placement
from latentseg.engine.result import ClassifiedResult, Result
from latentseg.engine.roles import Classifier, Compressor, RgbClassifier
from latentseg.engine.sinks import JsonLinesSink, LabelPngSink, OverlaySink, palette
from latentseg.errors import ArtifactError, InputError, UsageError

SIZES = [(1, 1), (1, 9), (8, 8), (13, 17), (31, 2)]
CENTRES = (-20.0, 11.5, 12.25, 100.0, 180.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("classify") / "tiny", CLASSIFYING)


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Engine]:
    with Engine(bundle, threads=1) as made:
        yield made


def frames_of(n: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise around a colour of its own in each frame, so that their classes differ."""
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 120, (n, height, width, 3), np.uint8) + rng.integers(0, 120, (n, 1, 1, 3), np.uint8)


def folder_of(frames: npt.NDArray[np.uint8], path: Path) -> Path:
    path.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i}.png")
    return path


def by_hand(latents: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return probabilities(latents.astype(np.float64).mean((2, 3)))


@pytest.mark.parametrize("size", SIZES)
def test_bytes_in_classes_out(engine: Engine, tmp_path: Path, size: tuple[int, int]) -> None:
    """A frame smaller than the stride is padded by its edge, like any other."""
    frames = frames_of(4, *size)
    folder = folder_of(frames, tmp_path / "frames")
    engine.encode(folder, tmp_path / "x.lseg")
    expected = by_hand(symbols(frames))
    for source in (tmp_path / "x.lseg", folder):  # the bytes, and frames that are made into bytes first
        with engine.classify(source) as run:
            results = list(run)
            assert run.size == size
        found = np.stack([r.probabilities for r in results])
        assert (found.dtype, found.shape) == (np.float32, (4, len(KINDS)))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert all(r.size == size and r.payload_bytes > 0 and r.rgb is None for r in results)
        assert [r.index for r in results] == [0, 1, 2, 3]
        assert {"read", "entropy_decode", "classify"} <= set(results[0].timings_ms)
    decoded = [r.rgb for r in engine.classify(tmp_path / "x.lseg", with_frames=True)]
    np.testing.assert_array_equal(decoded, [f.rgb for f in engine.decode(tmp_path / "x.lseg")])
    assert [r.index for r in engine.classify(folder, limit=2)] == [0, 1]


@pytest.mark.parametrize("size", SIZES)
def test_the_rgb_classifier_sees_the_padded_frame(bundle: Bundle, size: tuple[int, int]) -> None:
    frames = frames_of(3, *size)
    with RgbClassifier(bundle) as role:
        found = role.probabilities(frames)
        np.testing.assert_allclose(found, probabilities(frame_means(frames)), atol=1e-6)
        assert role.backend.output.name == "probabilities"
        with pytest.raises(UsageError, match=r"expected uint8 \[N, H, W, 3\]"):
            role.probabilities(frames[0])


def test_the_likeliest_classes() -> None:
    chances = np.array([0.1, 0.3, 0.05, 0.3, 0.0, 0.2, 0.05], np.float32)
    result = ClassifiedResult(0, 0, (8, 8), chances)
    assert [index for index, _ in result.top()] == [1, 3, 5, 0, 2]  # where two tie, the lower index is first
    assert result.top(2) == [(1, pytest.approx(0.3)), (3, pytest.approx(0.3))]
    assert len(ClassifiedResult(0, 0, (8, 8), chances[:3]).top()) == 3


def test_json_lines_have_the_five_likeliest(engine: Engine, tmp_path: Path) -> None:
    frames = frames_of(3, 17, 31)
    folder = folder_of(frames, tmp_path / "frames")
    with engine.classify(folder) as run, JsonLinesSink(tmp_path / "r.jsonl", engine.bundle.classes) as lines:
        for result in run:
            lines.write(result)
        lines.summary(run.summary())
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["type"] for row in rows] == ["frame"] * 3 + ["summary"]
    for row, expected in zip(rows, by_hand(symbols(frames)), strict=False):
        assert (row["size"], "classes" in row) == ([17, 31], False)
        order = np.argsort(-expected)[:5]
        assert [entry["index"] for entry in row["top5"]] == order.tolist()
        assert [entry["class"] for entry in row["top5"]] == [KINDS[i].name for i in order]
        np.testing.assert_allclose([entry["probability"] for entry in row["top5"]], expected[order], atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_codec_with_a_codebook(tmp_path: Path, size: tuple[int, int]) -> None:
    """Symbols are centres' indices, five in three bits, and classifiers see the centres."""
    bundle = write_tiny_bundle(tmp_path / "tiny", CLASSIFYING, centres=CENTRES)
    assert (bundle.codec.bits, load_bundle(bundle.path).codec.scaling.centres) == (3, CENTRES)
    frames = frames_of(3, *size)
    means = block_means(frames)
    centres = np.array(CENTRES, np.float32)
    nearest = centres[np.abs(means[..., None] - centres).argmin(-1)]
    with Compressor(bundle) as compressor, Classifier(bundle) as classifier:
        header = bundle.header(*size)
        received = classifier.entropy_decode(compressor.encode(frames, header), header)
        np.testing.assert_array_equal(received, nearest)
        np.testing.assert_allclose(classifier.probabilities(received, size), by_hand(nearest), atol=1e-6)
    with Engine(bundle, threads=1) as engine:
        found = [r.probabilities for r in engine.classify(folder_of(frames, tmp_path / "frames"))]
        np.testing.assert_allclose(found, by_hand(nearest), atol=1e-6)


# what does not fit


def test_streams_of_another_codec(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    other = write_tiny_bundle(tmp_path / "other", CLASSIFYING, codec_seed="other", centres=CENTRES)
    folder = folder_of(frames_of(2, 9, 9), tmp_path / "frames")
    with Engine(other, threads=1) as stranger:
        stranger.encode(folder, tmp_path / "x.lseg")
    with pytest.raises(ArtifactError, match="was written by codec") as caught:
        engine.classify(tmp_path / "x.lseg")
    assert (caught.value.exit_code, bool(caught.value.hint)) == (4, True)
    # The same codec by its id, and other centres: its symbols would stand for other values.
    header = other.header(9, 9)
    other.check_stream(header)
    moved = replace(header, scaling=Scaling("codebook", centres=(*CENTRES[:4], 181.0)))
    fewer = replace(header, bits=2, scaling=Scaling("codebook", centres=CENTRES[:3]))
    for lie, says in ((moved, "a codebook of 5 centres, -20, "), (fewer, "has 2 bits a symbol, expected 3")):
        with pytest.raises(ArtifactError, match=says):
            other.check_stream(lie)
    fixed = replace(header, scaling=Scaling("fixed", 0.0, 7.0))
    with pytest.raises(ArtifactError, match="scaling is fixed, expected a codebook of 5 centres"):
        other.check_stream(fixed)


@pytest.mark.parametrize(
    ("centres", "bits", "says"),
    [
        ([1.0, float("nan"), 3.0, 4.0, 5.0], 3, "holds what JSON text cannot"),
        ([1.0, 1e39, 3.0, 4.0, 5.0], 3, "centre 1 is inf"),
        ([1.0, 10**400, 3.0, 4.0, 5.0], 3, "'codec.scaling.centres'"),
        ([1.0, 2.0, 2.0, 4.0, 5.0], 3, "expected ascending centres"),
        ([1.0, 2.0, 3.0, 4.0], 3, "is 4 numbers, expected"),
        ([float(i) for i in range(9)], 3, "is 9 numbers, expected"),
        ([1.0], 3, "codebook of 1 centres"),
        ([1.0, "2", 3.0, 4.0, 5.0], 3, "expected a list of numbers"),
        ([1.0, True, 3.0, 4.0, 5.0], 3, "expected a list of numbers"),
        ("12345", 3, "expected a list of numbers"),
    ],
)
def test_codebooks_that_lie(tmp_path: Path, centres: object, bits: int, says: str) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny", CLASSIFYING, centres=CENTRES).path
    raw = json.loads((folder / "manifest.json").read_text())
    raw["codec"] |= {"bits": bits, "scaling": {"mode": "codebook", "centres": centres}}
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError) as caught:
        load_bundle(folder)
    assert says in str(caught.value)


def test_manifests_of_classifiers(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.classifies
    assert bundle.roles == CLASSIFYING
    assert bundle.classes == KINDS
    assert "color" not in bundle.manifest["classes"][0]
    models = {role: (bundle.model_path(role), 1.0, 0) for role in CLASSIFYING}

    def written(classes: list[ClassInfo]) -> Bundle:
        return write_bundle(tmp_path / "new", "new", bundle.codec, models, classes, overwrite=True)

    many = [ClassInfo(f"class {i}") for i in range(1 << 16)]
    assert written(many).classes == many
    assert written([ClassInfo("a", (1, 2, 3)), ClassInfo("b")]).classes[0].color == (1, 2, 3)
    with pytest.raises(ArtifactError, match="65537 entries, expected 1 to 65536"):
        written([*many, ClassInfo("one more")])
    with pytest.raises(ArtifactError, match="0 entries, expected 1 to 65536"):
        written([])
    with pytest.raises(ArtifactError, match="the name 'a' twice"):
        written([ClassInfo("a"), ClassInfo("b"), ClassInfo("a")])


def test_segmenters_and_classifiers_do_not_go_together(tiny_bundle: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    assert not tiny_bundle.classifies
    models = {role: (tiny_bundle.model_path(role), 1.0, 0) for role in ROLES}
    both = {**models, "classifier": (bundle.model_path("classifier"), 1.0, 0)}
    with pytest.raises(ArtifactError, match="rgb_segmenter, segmenter beside classifier, expected segmenters or"):
        write_bundle(tmp_path / "both", "both", bundle.codec, both, CLASSES)
    with pytest.raises(ArtifactError, match=r"'classes\[0\]\.color' is missing"):
        write_bundle(tmp_path / "plain", "plain", bundle.codec, models, KINDS)
    with Engine(tiny_bundle) as engine, pytest.raises(ArtifactError, match="has no classifier, only"):
        engine.classify(tmp_path)
    with Engine(bundle) as engine, pytest.raises(ArtifactError, match="has no segmenter, only"):
        engine.segment(folder_of(frames_of(1, 8, 8), tmp_path / "frames"))


def test_class_list_of_another_length(bundle: Bundle, tmp_path: Path) -> None:
    models = {role: (bundle.model_path(role), 1.0, 0) for role in ("compressor", "classifier")}
    short = write_bundle(tmp_path / "short", "short", bundle.codec, models, KINDS[:6])
    with pytest.raises(ArtifactError, match="gives 7 classes, the manifest names 6"):
        Classifier(short)
    segmenter = write_tiny_bundle(tmp_path / "tiny")
    models["classifier"] = (segmenter.model_path("segmenter"), 1.0, 0)
    mixed = write_bundle(tmp_path / "mixed", "mixed", bundle.codec, models, KINDS)
    with pytest.raises(ArtifactError, match="expected float32 with 2 dimensions"):
        Classifier(mixed)


def test_latents_that_do_not_fit(bundle: Bundle) -> None:
    with Classifier(bundle) as role:
        with pytest.raises(UsageError, match=r"expected \[N, 3, 2, 2\]"):
            role.probabilities(np.zeros((1, 3, 2, 3), np.float32), (16, 16))
        with pytest.raises(InputError):
            role.entropy_decode([b"\xff" * 40], bundle.header(16, 16))


def test_where_classifiers_do_not_run(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the classifier on tensorrt") as caught:
        Placement("tensorrt").model_file(bundle, "classifier")
    assert "--backend onnxruntime" in caught.value.hint
    with Engine(bundle, "tensorrt") as engine, pytest.raises(UsageError, match="does not classify"):
        engine.classify(tmp_path / "not looked at")
    with pytest.raises(ArtifactError, match="has no int8 classifier, only fp32") as caught_:
        Classifier(bundle, Placement(precision="int8"))
    assert "only segmenters have other precisions" in caught_.value.hint
    with pytest.raises(UsageError, match="fp16 on onnxruntime"):
        Classifier(bundle, Placement(precision="fp16"))
    with Compressor(bundle, Placement(precision="int8")) as compressor:  # a codec is never asked for anything else
        assert compressor.backend.input.dtype == np.uint8
    with pytest.raises(UsageError, match="no bundle has the variant 'int8' of role 'classifier'"):
        add_variant(bundle, "classifier", "int8", bundle.model_path("classifier"), {})
    with pytest.raises(ArtifactError, match="has no torch classifier") as lacks:
        bundle.model_path("classifier", "torch")
    assert "--classifier RUN --programs" in lacks.value.hint


def test_sinks_of_labels_refuse(engine: Engine, bundle: Bundle, tmp_path: Path) -> None:
    for sink in (OverlaySink, LabelPngSink):
        with pytest.raises(UsageError, match="the class 'dusk' without a colour, expected a segmenter's"):
            sink(tmp_path / "x.mp4", bundle.classes)
    with pytest.raises(UsageError, match="label maps of 257 classes"):
        palette([ClassInfo(f"c{i}", (0, 0, 0)) for i in range(257)])
    folder = folder_of(frames_of(1, 8, 8), tmp_path / "frames")
    with OverlaySink(tmp_path / "y.mp4", CLASSES) as overlay, engine.classify(folder) as run:
        with pytest.raises(UsageError, match=r"y\.mp4 takes label maps, found the class of a frame"):
            overlay.write(next(run))  # type: ignore[arg-type]
        overlay.write(Result(0, 0, np.zeros((8, 8), np.uint8)))
    assert (overlay.frames, (tmp_path / "y.mp4").stat().st_size > 0) == (1, True)
