"""One codec, many rates: what a quantisation step does to symbols, streams and labels, against NumPy by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import _tiny_bundle as tiny
import numpy as np
import pytest
from _clip import clip
from _fused_setup import SIZE, Setup, frames_of
from _sender_setup import Machine, works

from latentseg.bitstream import Reader, Scaling
from latentseg.engine import Engine
from latentseg.engine.bundle import Bundle, load_bundle
from latentseg.engine.codec import ONE_STEP, CodecSpec
from latentseg.engine.roles import Compressor, Segmenter
from latentseg.engine.sources import FrameSource, SourceFrame
from latentseg.errors import ArtifactError, InputError, UsageError
from latentseg.kernels import entropy

STEPS = (0.4, 2.5)
COMPACT = CodecSpec("compact", bytes(range(32)), 3, 8, 8, Scaling("fixed", -128.0, 127.0), steps=STEPS)


class Memory(FrameSource):
    """The clip, as a source."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.frames = clip()
        self.size, self.frame_rate, self.length = self.frames.shape[1:3], (10, 1), len(self.frames)

    def __iter__(self) -> Iterator[SourceFrame]:
        return (SourceFrame(index, index * 100_000, frame) for index, frame in enumerate(self.frames))


@pytest.fixture(scope="module")
def ranged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.write_tiny_bundle(tmp_path_factory.mktemp("ranged") / "tiny", steps=STEPS)


@pytest.fixture
def engine(ranged: Bundle) -> Iterator[Engine]:
    with Engine(ranged, threads=1) as made:
        yield made


# --- what a step is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.4, 0.6, 1.0, 1 / 0.7, 1.6, 2.5])
def test_a_step_scales_the_range_and_is_found_again(step: float) -> None:
    scaling = COMPACT.scaling_at(step)
    assert (scaling.lo, scaling.hi) == (np.float32(step * -128), np.float32(step * 127))
    assert COMPACT.step_of(scaling) == pytest.approx(step, rel=1e-5)
    COMPACT.check_stream(header_of(COMPACT, scaling), "b")
    assert (scaling == COMPACT.scaling) == (step == 1)
    assert replace(COMPACT, scaling=Scaling("fixed", 0.0, 255.0)).step_of(Scaling("fixed", 0.0, 510.0)) == 2.0


def header_of(codec: CodecSpec, scaling: Scaling) -> Any:
    from latentseg.bitstream import StreamHeader

    return StreamHeader(codec.id, (3, 2, 4), 8, scaling)


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_is_a_positive_number(step: float) -> None:
    with pytest.raises(UsageError, match=r"a quantisation step of \S+, expected a positive number"):
        COMPACT.scaling_at(step)


def test_a_step_outside_the_range_is_refused() -> None:
    for step in (0.399, 2.51):
        with pytest.raises(UsageError, match=r"are for 0\.4 to 2\.5") as caught:
            COMPACT.scaling_at(step)
        assert "latentseg bundles" in caught.value.hint
    with pytest.raises(UsageError, match="are for 1 alone"):
        replace(COMPACT, steps=ONE_STEP).scaling_at(1.01)
    for scaling in (Scaling("channel"), Scaling("tensor"), Scaling("codebook", centres=tuple(range(200)))):
        other = replace(COMPACT, scaling=scaling, steps=ONE_STEP)
        assert other.scaling_at(1.0) == scaling
        with pytest.raises(UsageError, match=f"whose scaling is '{scaling.mode}'"):
            other.scaling_at(1.5)
        assert other.step_of(scaling) is None


def test_a_stream_of_another_range_is_refused() -> None:
    for lo, hi in ((-128, 128), (-127, 127), (0, 255), (128, 383), (5, 5), (-127, 128), (-128.001, 127.0)):
        with pytest.raises(ArtifactError, match=r"the stream's symbols span .*, expected a multiple of -128 to 127"):
            COMPACT.check_stream(header_of(COMPACT, Scaling("fixed", lo, hi)), "b")
    for step in (0.39, 2.6):
        far = header_of(COMPACT, Scaling("fixed", step * -128, step * 127))
        with pytest.raises(ArtifactError, match=rf"step is {step}, but .* bundle 'b' are for 0\.4 to 2\.5"):
            COMPACT.check_stream(far, "b")
    with pytest.raises(ArtifactError, match=r"step is 0\.4, but .* are for 1 alone"):
        replace(COMPACT, steps=ONE_STEP).check_stream(header_of(COMPACT, COMPACT.scaling_at(0.4)), "b")
    empty = replace(COMPACT, scaling=Scaling("fixed", 5.0, 5.0))  # a range that no step can be told from
    empty.check_stream(header_of(empty, empty.scaling), "b")
    with pytest.raises(ArtifactError, match="expected a multiple"):
        empty.check_stream(header_of(empty, Scaling("fixed", 10.0, 10.0)), "b")


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_keeps_the_steps(ranged: Bundle, tiny_bundle: Bundle, tmp_path: Path) -> None:
    raw = json.loads((ranged.path / "manifest.json").read_text())
    assert raw["codec"]["steps"] == {"lo": 0.4, "hi": 2.5}
    assert raw["schema"] == 1
    assert load_bundle(ranged.path).codec.steps == STEPS
    # Manifests from before there were any say nothing, and mean step 1; so does what is written for it.
    assert "steps" not in json.loads((tiny_bundle.path / "manifest.json").read_text())["codec"]
    assert tiny_bundle.codec.steps == ONE_STEP
    folder = Path(shutil.copytree(ranged.path, tmp_path / "copy"))
    raw["codec"]["scaling"] = {"mode": "channel"}
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=r"'codec\.steps\.lo' is there beside scaling 'channel'"):
        load_bundle(folder)
    raw["codec"] |= {"scaling": {"mode": "fixed", "lo": -6e35, "hi": 6e35}, "steps": {"lo": 1, "hi": 100}}
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=r"'codec\.steps\.hi' is 100\.0, expected a multiple of the range"):
        load_bundle(folder)


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.5, 1.0, 1.5, 2.5])
def test_encode_decode_and_segment_by_hand(engine: Engine, tmp_path: Path, step: float) -> None:
    frames = clip()
    expected = tiny.symbols(frames, step)
    summary = engine.encode(Memory(), tmp_path / "x.lseg", step=step)
    assert summary.frames == len(frames)
    with open(tmp_path / "x.lseg", "rb") as file:
        reader = Reader(file)
        payloads = [frame.payload for frame in reader]
    assert (reader.header.scaling.lo, reader.header.scaling.hi) == (0.0, 255 * step)
    for implementation in ("native", "numpy"):
        found = [entropy.decode_symbols(p, reader.header, implementation=implementation) for p in payloads]  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
        latents = [entropy.decode_latent(p, reader.header, implementation=implementation) for p in payloads]  # type: ignore[arg-type]
        np.testing.assert_allclose(latents, expected * step, rtol=1e-6)
    pixels = np.rint(expected * step).clip(0, 255).transpose(0, 2, 3, 1).repeat(8, axis=1).repeat(8, axis=2)
    decoded = [frame.rgb for frame in engine.decode(tmp_path / "x.lseg")]
    np.testing.assert_array_equal(decoded, pixels[:, : frames.shape[1], : frames.shape[2]])
    for source, given in ((tmp_path / "x.lseg", None), (Memory(), step)):
        labels = [result.labels for result in engine.segment(source, step=given)]
        np.testing.assert_array_equal(labels, tiny.labels(frames, step))


def test_a_larger_step_is_a_smaller_stream(engine: Engine, tmp_path: Path) -> None:
    sizes = [engine.encode(Memory(), tmp_path / f"{step}.lseg", step=step).payload_bytes for step in (1, 1.6, 2.5)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_what_the_engine_refuses(engine: Engine, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a positive number"):
        engine.encode(Memory(), tmp_path / "x.lseg", step=0.0)
    with pytest.raises(UsageError, match=r"are for 0\.4 to 2\.5"):
        engine.segment(Memory(), step=3.0)
    assert not (tmp_path / "x.lseg").exists()
    engine.encode(Memory(), tmp_path / "x.lseg", step=2.0)
    with pytest.raises(UsageError, match=r"a quantisation step of 2 for .*x\.lseg, an \.lseg stream") as caught:
        engine.segment(tmp_path / "x.lseg", step=2.0)
    assert "encode --step" in caught.value.hint
    # A bundle of the same codec whose networks know one step alone: nothing is segmented at another in silence.
    with Engine(tiny_bundle, threads=1) as narrow:
        for work in (narrow.segment, narrow.decode):
            with pytest.raises(ArtifactError, match="quantisation step is 2, but the networks of bundle 'tiny'"):
                work(tmp_path / "x.lseg")
        with pytest.raises(UsageError, match="are for 1 alone"):
            narrow.encode(Memory(), tmp_path / "y.lseg", step=2.0)
    with pytest.raises(InputError):
        engine.encode(tmp_path / "none.mp4", tmp_path / "y.lseg", step=2.0)


def test_classifiers_take_a_step_as_well(tmp_path: Path) -> None:
    bundle = tiny.write_tiny_bundle(tmp_path / "kinds", tiny.CLASSIFYING, steps=STEPS)
    frames = clip()
    with Engine(bundle, threads=1) as engine:
        found = [result.probabilities for result in engine.classify(Memory(), step=2.0)]
    expected = tiny.probabilities((tiny.symbols(frames, 2.0) * 2.0).mean((2, 3)))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


# --- on a (fake) GPU --------------------------------------------------------------------------------------------------


def rangify(bundle: Bundle) -> Bundle:
    path = bundle.path / "manifest.json"
    raw = json.loads(path.read_text())
    raw["codec"]["steps"] = {"lo": STEPS[0], "hi": STEPS[1]}
    path.write_text(json.dumps(raw))
    return load_bundle(bundle.path)


def test_the_gpu_sends_and_receives_at_the_headers_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentseg.engine.tensorrt.runner import FusedSegmenter
    from latentseg.engine.tensorrt.sender import FusedCompressor

    machine: Setup = Machine(tmp_path, monkeypatch)
    bundle, frames = rangify(machine.bundle), frames_of(5)
    for step in (0.5, 2.5):
        header = bundle.header(*SIZE, step=step)
        with FusedCompressor(bundle, header, SIZE, 2, 2, 1, device=machine.device) as sender:
            payloads = [work.payload for work in sender.run(works(frames))]
        with Compressor(bundle) as compressor:
            assert payloads == compressor.encode(frames, header)
        found = [entropy.decode_symbols(payload, header) for payload in payloads]
        np.testing.assert_array_equal(found, tiny.symbols(frames, step))
        with FusedSegmenter(bundle, header, SIZE, "fp32", 2, 2, device=machine.device) as receiver:
            labelled = receiver.collect(receiver.submit(payloads[:2])).labels
        with Segmenter(bundle) as segmenter:
            expected = segmenter.labels(segmenter.entropy_decode(payloads[:2], header), SIZE)
        np.testing.assert_array_equal(labelled, expected)
        np.testing.assert_array_equal(labelled, tiny.labels(frames[:2], step))
