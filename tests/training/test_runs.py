"""Runs end to end on tiny data: resume equals an uninterrupted run, states and weights survive, misuse is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentseg.errors import ArtifactError, InputError, OutputError, UsageError
from latentseg.models import registry
from latentseg.training import checkpoint
from latentseg.training.loop import LoopConfig, learning_rate, step_rng
from latentseg.training.train_codec import CodecConfig, train_codec
from latentseg.training.train_segmenter import SegmenterConfig, check_fit, class_weights, requantise, train_segmenter

TINY = {"channels": 4, "width": 8, "encoder_units": 1, "decoder_units": 1}
CODEC = CodecConfig(target_bpp=0.5, patch=32, batch=2, pca_patches=400)
SEGMENTER = SegmenterConfig(size=(24, 32), batch=2)
NARROW = {"width": 8, "dilations": [1, 2]}


def loop(steps: int, **changes: object) -> LoopConfig:
    return LoopConfig(**{"steps": steps, "warmup": 2, "interval": 2, "bf16": False, "threads": 1, **changes})  # type: ignore[arg-type]


def frames(count: int, height: int = 40, width: int = 56) -> list[NDArray[np.uint8]]:
    """Smooth frames with a moving edge."""
    y, x = np.mgrid[:height, :width]
    return [
        np.stack([(x * 3 + 9 * i) % 256, (y * 5) % 256, 255 * (x > 10 + i)], -1).astype(np.uint8) for i in range(count)
    ]


def labels(count: int) -> list[NDArray[np.uint8]]:
    return [(f[..., 2] // 255).astype(np.uint8) for f in frames(count)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path)[0]


def test_codec_run_and_resume_are_the_same(tmp_path: Path) -> None:
    whole = train_codec("compact-codec", frames(3), tmp_path / "a", CODEC, loop(6), options=TINY, progress=False)
    # The same run, killed after the checkpoint at step 4 (its loop raises), then resumed.
    killed = tmp_path / "b"

    class KilledError(Exception):
        pass

    def kill(run_frames: list[NDArray[np.uint8]], seen: list[int]) -> list[NDArray[np.uint8]]:
        class Frames(list):  # type: ignore[type-arg]
            def __getitem__(self, index: object) -> object:
                seen.append(1)
                if len(seen) > stop:
                    raise KilledError
                return super().__getitem__(index)  # type: ignore[index]

        return Frames(run_frames)

    stop = 10**9
    seen: list[int] = []
    with_count = kill(frames(3), seen)
    train_codec("compact-codec", with_count, tmp_path / "count", CODEC, loop(4), options=TINY, progress=False)
    stop = len(seen) + 3  # in the second half of step 6: step 5 is lost, the checkpoint of step 4 is not
    with pytest.raises(KilledError):
        train_codec("compact-codec", kill(frames(3), []), killed, CODEC, loop(6), options=TINY, progress=False)
    assert not (killed / "model.safetensors").exists()
    assert [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()] == [2, 4]
    resumed = train_codec("compact-codec", frames(3), killed, CODEC, loop(6), options=TINY, resume=True, progress=False)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0, msg=name)


def test_existing_run_and_changed_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="nothing to resume"):
        train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=TINY, resume=True, progress=False)
    train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=TINY, progress=False)
    with pytest.raises(UsageError, match="already holds a run") as caught:
        train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=TINY, progress=False)
    assert "--resume" in caught.value.hint
    with pytest.raises(ArtifactError, match=r"other settings: loop steps was 2, asked for 3$"):
        train_codec("compact-codec", frames(2), out, CODEC, loop(3), options=TINY, resume=True, progress=False)
    wider = {**TINY, "channels": 6}
    with pytest.raises(ArtifactError, match="size mismatch"):
        train_codec("compact-codec", frames(2), out, CODEC, loop(2), options=wider, resume=True, progress=False)
    with pytest.raises(ArtifactError, match="do not fit network 'compact-codec'"):
        train_codec("compact-codec", frames(2), tmp_path / "b", CODEC, loop(2), options=wider, init=out, progress=False)


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"seed": -1}, {"warmup": -1}, {"interval": 0}, {"lr": 0.0}, {"lr": float("nan")}]
)
def test_loops_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        loop(**{"steps": 2, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [0.0, -1.0, 24.0, float("nan")])
def test_target_rates_that_make_no_sense(target: float) -> None:
    with pytest.raises(UsageError, match="bpp, expected"):
        CodecConfig(target_bpp=target)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"crops of 33, expected a multiple .* 8"):
        train_codec("compact-codec", frames(1), tmp_path / "a", CodecConfig(target_bpp=0.5, patch=33), loop(1))
    with pytest.raises(InputError, match="a frame of 5x56, expected at least 8x8"):
        train_codec("compact-codec", [frames(1)[0][:5]], tmp_path / "b", CODEC, loop(1), options=TINY)
    with pytest.raises(UsageError, match="canvas of 24x33"):
        train_segmenter("compact-rgb", frames(1), labels(1), 2, tmp_path / "c", SegmenterConfig((24, 33)), loop(1))
    void = [np.full_like(label, 255) for label in labels(2)]
    with pytest.raises(InputError, match="no pixel of any label"):
        train_segmenter("compact-rgb", frames(2), void, 2, tmp_path / "d", SEGMENTER, loop(1))


def test_segmenter_must_fit_the_codecs_latents() -> None:
    codec, other = registry.create("compact-codec", **TINY), registry.create("kakaiya-codec-d1")
    segmenter = registry.create("compact-latent", channels=4, **NARROW)
    check_fit(segmenter, codec, "compact-latent")
    check_fit(registry.create("kakaiya-latent-d1"), other, "kakaiya-latent-d1")
    with pytest.raises(ArtifactError, match="1/4 resolution, 'compact-latent' expects 1/8"):
        check_fit(segmenter, other, "compact-latent")
    with pytest.raises(ArtifactError, match="does not take latents of 4 channels"):
        check_fit(registry.create("compact-latent", channels=5, **NARROW), codec, "compact-latent")


def test_checkpoint_that_cannot_be_written_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.ones(1)}, {})
    (tmp_path / "state.safetensors.tmp").mkdir()
    with pytest.raises(OutputError, match="cannot write checkpoint"):
        checkpoint.save(path, {"a": torch.zeros(1)}, {})
    assert checkpoint.load(path)[0]["a"].item() == 1
    with pytest.raises(UsageError, match="is a file"):
        train_codec("compact-codec", frames(1), path, CODEC, loop(1), options=TINY)


def test_target_rate_steers_the_distortion_weight(tmp_path: Path) -> None:
    last = {}
    for target in (0.2, 1.5):
        config = CodecConfig(target_bpp=target, patch=32, batch=2, pca_patches=400)
        out = tmp_path / str(target)
        train_codec(
            "compact-codec", frames(4), out, config, loop(40, interval=20, lr=2e-3), options=TINY, progress=False
        )
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        last[target] = rows[-1]
    assert last[0.2]["bpp"] < last[1.5]["bpp"]
    # 0.3 bpp is too much for the one, so its distortion must count for less, and too little for the other.
    assert last[0.2]["lambda"] < 0.003 < last[1.5]["lambda"]
    assert last[0.2]["psnr"] < last[1.5]["psnr"]


@pytest.mark.parametrize("latent", [False, True])
def test_segmenter_learns(tmp_path: Path, latent: bool) -> None:
    codec = None
    if latent:
        codec = train_codec("compact-codec", frames(2), tmp_path / "c", CODEC, loop(2), options=TINY, progress=False)
    path = train_segmenter(
        "compact-latent" if latent else "compact-rgb", frames(3), labels(3), 2, tmp_path / "s", SEGMENTER,
        loop(30, interval=10, lr=5e-3), codec=codec, options=NARROW, progress=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "s" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    loaded = checkpoint.load_weights(path)
    assert loaded.options["classes"] == 2
    if codec is not None:
        assert loaded.options["channels"] == 4
        assert loaded.facts["settings"]["codec"] == checkpoint.load_weights(codec).content_id
    loaded.build()


def test_kind_and_codec_must_fit(tmp_path: Path) -> None:
    args = (frames(1), labels(1), 2, tmp_path / "x", SEGMENTER, loop(1))
    with pytest.raises(UsageError, match="not a segmenter"):
        train_segmenter("compact-codec", *args)
    with pytest.raises(UsageError, match="needs codec"):
        train_segmenter("compact-latent", *args)
    with pytest.raises(UsageError, match="not a codec"):
        train_codec("compact-rgb", frames(1), tmp_path / "x", CODEC, loop(1))
    with pytest.raises(UsageError, match="rate"):
        train_codec("kakaiya-codec-d1", frames(1), tmp_path / "x", CODEC, loop(1))


def test_checkpoints_that_lie(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")
    (tmp_path / "rubbish.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="cannot read checkpoint"):
        checkpoint.load(tmp_path / "rubbish.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "foreign.safetensors"))
    with pytest.raises(ArtifactError, match="not a latentseg checkpoint"):
        checkpoint.load(tmp_path / "foreign.safetensors")
    path = train_codec("compact-codec", frames(2), tmp_path / "run", CODEC, loop(2), options=TINY, progress=False)
    with pytest.raises(ArtifactError, match="expected rgb_segmenter"):
        checkpoint.load_weights(path, kinds=("rgb_segmenter",))
    with pytest.raises(ArtifactError, match="resume state"):
        checkpoint.load_weights(tmp_path / "run" / "state.safetensors")
    tensors, metadata = checkpoint.load(path)
    checkpoint.save_weights(tmp_path / "bad.safetensors", "compact-codec", {}, tensors, metadata["facts"])
    with pytest.raises(ArtifactError, match="do not fit"):
        checkpoint.load_weights(tmp_path / "bad.safetensors").build()


def test_content_id_names_the_weights() -> None:
    tensors = {"w": torch.arange(4.0), "b": torch.zeros(2)}
    first = checkpoint.content_id("n", {"x": 1}, tensors)
    assert first == checkpoint.content_id("n", {"x": 1}, dict(reversed(list(tensors.items()))))
    assert first != checkpoint.content_id("n", {"x": 2}, tensors)
    assert first != checkpoint.content_id("n", {"x": 1}, {**tensors, "b": torch.tensor([0.0, 1e-7])})


def test_requantise_is_the_streams_own(tmp_path: Path) -> None:
    from latentseg.kernels.dequantize import dequantize
    from latentseg.kernels.quantize import quantize

    z = torch.tensor(np.random.default_rng(0).normal(0, 3, (2, 3, 5, 7)), dtype=torch.float32)
    for bits in (1, 5, 8):
        fixed = requantise(z, bits, ("fixed", -4.0, 4.0)).numpy()
        per_tensor = requantise(z, bits, ("tensor", 0.0, 0.0)).numpy()
        per_channel = requantise(z, bits, ("channel", 0.0, 0.0)).numpy()
        for i, latent in enumerate(z.numpy()):
            for found, lo, hi in (
                (fixed[i], -4.0, 4.0),
                (per_tensor[i], latent.min(), latent.max()),
                (per_channel[i], latent.min((1, 2)), latent.max((1, 2))),
            ):
                expected = dequantize(quantize(latent, bits, lo, hi), bits, lo, hi)
                np.testing.assert_allclose(found, expected, atol=2e-6)
    constant = torch.full((1, 2, 3, 3), 1.25)
    assert torch.equal(requantise(constant, 8, ("tensor", 0.0, 0.0)), constant)


def test_schedule_and_step_generator() -> None:
    config = LoopConfig(steps=100, lr=1.0, warmup=10, final_lr_share=0.0)
    rates = [learning_rate(config, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert step_rng(1, 2).random() == step_rng(1, 2).random() != step_rng(1, 3).random()


def test_class_weights_by_hand() -> None:
    label = np.array([[0] * 16 + [1] * 4 + [2] * 1 + [255] * 9], np.uint8)
    assert class_weights([label], 3, 0.5).tolist() == pytest.approx([0.5, 1.0, 2.0])
