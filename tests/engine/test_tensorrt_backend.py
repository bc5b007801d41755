"""`--backend tensorrt` on a fake device: every role against ONNX Runtime, and whole streams through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fake_engines import write_fake_engine
from _fused_setup import SIZE, Setup, frames_of, payloads_of, truth

from latentseg.bitstream import Writer
from latentseg.engine import Engine
from latentseg.engine.backends import open_backend
from latentseg.engine.backends.tensorrt import TensorRtBackend
from latentseg.engine.placement import Placement
from latentseg.engine.roles import Compressor, Decompressor, RgbSegmenter, Segmenter
from latentseg.errors import ArtifactError, BackendMissingError, UsageError

GPU = Placement("tensorrt")


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    made = Setup(tmp_path, monkeypatch)
    made.plug_in()
    return made


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_every_role_gives_what_onnxruntime_gives(setup: Setup, flavour: str) -> None:
    setup.install(flavour)
    (setup.bundle.path / "engines" / "segmenter-fp32-tensorrt.engine").unlink()
    for role in setup.bundle.roles:
        write_fake_engine(setup.bundle, setup.cuda, role, flavour=flavour)
    frames = frames_of(3)
    results: list[dict[str, np.ndarray]] = []
    for placement in (Placement(), GPU):
        with (
            Compressor(setup.bundle, placement) as compressor, Decompressor(setup.bundle, placement) as decompressor,
            Segmenter(setup.bundle, placement) as segmenter, RgbSegmenter(setup.bundle, placement) as rgb_segmenter,
        ):  # fmt: skip
            latents = np.rint(compressor.latents(frames))
            results.append({
                "latents": latents, "frames": decompressor.frames(latents, SIZE),
                "labels": segmenter.labels(latents, SIZE), "rgb": rgb_segmenter.labels(frames),
            })  # fmt: skip
            # Other shapes after it, smaller and larger.
            for count in (1, 4):
                assert np.array_equal(rgb_segmenter.labels(frames_of(count)), frames_of(count).argmax(axis=3))
            assert segmenter.backend.provider.startswith("CPU" if placement is not GPU else "TensorRT")
    for name, found in results[1].items():
        assert np.array_equal(found, results[0][name]), name
    assert setup.clean


def test_a_half_precision_input_is_rounded_on_the_way(setup: Setup) -> None:
    path = write_fake_engine(setup.bundle, setup.cuda, precision="fp16", dtype="float16")
    latents = np.full((1, 3, 2, 2), 7, np.float32)
    latents[:, 1] = 2049  # 2048 in float16
    latents[:, 2] = 2048
    with open_backend(path, "tensorrt") as backend:
        assert backend.input.dtype == np.float32
        assert (backend.run(latents) == 1).all()  # the first of two equals
        latents[:, 1] = 2047
        assert (backend.run(latents) == 2).all()


def test_what_does_not_fit_is_refused(setup: Setup) -> None:
    path = write_fake_engine(setup.bundle, setup.cuda, role="rgb_segmenter", frames=((1, 8, 8), (2, 64, 64)))
    backend = open_backend(path, "tensorrt", provider="cuda")
    with pytest.raises(ArtifactError, match="an input of 1x64x72x3 is outside the engine's profile 1x8x8x3:") as caught:
        backend.run(np.zeros((1, 64, 72, 3), np.uint8))
    assert "--profile 1x8x8:2x64x64:2x64x72 " in caught.value.hint
    setup.module.refuse = "run"
    with pytest.raises(ArtifactError, match="refused a run"):
        backend.run(np.zeros((1, 64, 64, 3), np.uint8))
    backend.close()
    backend.close()
    assert setup.clean
    with pytest.raises(UsageError, match="backend tensorrt has no provider 'cpu'"):
        TensorRtBackend(path, None, "cpu")
    write_fake_engine(setup.bundle, setup.cuda, role="rgb_segmenter", archs=(80, 89))
    with pytest.raises(ArtifactError, match=r"built for compute capability 8\.0, 8\.9, this GPU has 9\.0") as caught:
        open_backend(path, "tensorrt")
    assert caught.value.exit_code == 4
    assert f"latentseg build {setup.bundle.path} " in caught.value.hint
    assert setup.clean


def test_without_a_gpu_it_says_what_is_missing(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(ordinal: int) -> Any:
        raise BackendMissingError("no CUDA device 0 on this machine")

    monkeypatch.setattr("latentseg.kernels.gpu.pycuda.PycudaDevice", missing)
    with pytest.raises(BackendMissingError, match="no CUDA device 0"):
        GPU.open(setup.bundle, "segmenter")


def test_the_real_tensorrt_rtx_has_every_name_that_is_called() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="wants tensorrt-rtx: Linux on x86-64")
    names = {
        trt.Runtime: "deserialize_cuda_engine",
        trt.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype get_tensor_shape "
        "create_execution_context create_runtime_config",
        trt.IRuntimeConfig: "set_execution_context_allocation_strategy cuda_graph_strategy create_runtime_cache "
        "dynamic_shapes_kernel_specialization_strategy set_runtime_cache",
        trt.IRuntimeCache: "serialize deserialize",
        trt.IExecutionContext: "set_optimization_profile_async set_input_shape infer_shapes get_tensor_shape "
        "update_device_memory_size_for_shapes set_device_memory set_tensor_address execute_async_v3 "
        "is_stream_capturable",
        trt.ExecutionContextAllocationStrategy: "USER_MANAGED",
        trt.CudaGraphStrategy: "DISABLED",
        trt.DynamicShapesKernelSpecializationStrategy: "EAGER",
        trt.TensorIOMode: "INPUT OUTPUT",
    }
    assert [name for kind, text in names.items() for name in text.split() if not hasattr(kind, name)] == []


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_a_stream_through_the_engine(setup: Setup, tmp_path: Path, batch: int | None) -> None:
    write_fake_engine(setup.bundle, setup.cuda, frames=((1, 8, 8), (8, 256, 256)))
    payloads = payloads_of(setup.bundle, 10)
    stream = tmp_path / "video.lseg"
    with stream.open("wb") as file:
        writer = Writer(file, setup.header)
        for place, payload in enumerate(payloads):
            writer.write(payload if place != 4 else payload[:-1], 1000 * place)
    with Engine(setup.bundle, "tensorrt", batch=batch) as engine, engine.segment(stream) as run:
        found = list(run)
        assert run.lost == 1
    expected = truth(setup.bundle, payloads)
    assert [result.index for result in found] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for result in found:
        assert np.array_equal(result.labels, expected[result.index])
        assert {"read", "plan", "gpu"} <= result.timings_ms.keys()
    assert setup.clean
