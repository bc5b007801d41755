"""The parts of `gpu_suite --check`: each takes one GPU piece and compares it with the CPU engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bitstream import Scaling
from ..engine.bundle import Bundle, load_bundle
from ..engine.roles import Compressor, RgbSegmenter, Segmenter
from ..errors import BackendMissingError, VerificationError
from ..export.verify import synthetic_frames
from ..kernels import entropy
from .gpu_checks_sender import quantize, sender

if TYPE_CHECKING:
    from ..kernels.gpu.device import Device
    from ..kernels.gpu.images import KernelSet

SIZE = (360, 480)
FRAMES = 5  # batches of 2 leave a last one of 1
# Least share of labels that must be as the CPU's: they may differ where two logits tie.
AGREEMENT = {"fp32": 0.998, "fp16": 0.99, "int8": 0.99}
# Latents that no tile fits, and one of a single position.
FLOATS = ("float32", "float16")
AWKWARD = ((3, 1, 1), (5, 17, 31), (32, 45, 60))


class Checks:
    """The frames, payloads and the CPU's answers that every part is compared with."""

    def __init__(self, bundle: str, folder: Path) -> None:
        """folder: where parts may write."""
        self.folder = folder
        self.bundle: Bundle = load_bundle(bundle)
        self.frames = synthetic_frames(FRAMES, *SIZE)
        self.header = self.bundle.header(*SIZE)

    @cached_property
    def payloads(self) -> list[bytes]:
        with Compressor(self.bundle) as compressor:
            return compressor.encode(self.frames, self.header)

    def cpu_labels(self, precision: str = "fp32") -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """What the CPU engine says from the bytes, and from the frames: uint8 (N, H, W) each."""
        from ..engine.placement import Placement

        placement = Placement(precision=precision)
        with Segmenter(self.bundle, placement) as segmenter, RgbSegmenter(self.bundle, placement) as rgb:
            latents = segmenter.entropy_decode(self.payloads, self.header)
            return segmenter.labels(latents, SIZE), rgb.labels(self.frames)

    def kernels(self, capability: int, scaling: Scaling | None = None) -> KernelSet:
        """The kernels of the bundle's streams, compiled here for this GPU; with another scaling where one is given."""
        from ..kernels.triton.compile import compile_kernels

        codec = self.bundle.codec
        codebook = (scaling or codec.scaling).mode == "codebook"
        return compile_kernels(codec.bits, codec.tile, [capability], codebook=codebook)

    def copied(self, name: str) -> Bundle:
        """The bundle in a folder of this name, its kernels compiled for this GPU: no other part's engines are there."""
        from ..engine.tensorrt.gpus import this_gpu
        from ..kernels.gpu.images import save_kernels

        folder = self.folder / name
        kernels = self.kernels(this_gpu().capability)
        shutil.copytree(self.bundle.path, folder, ignore=shutil.ignore_patterns("engines", "kernels"))
        save_kernels(kernels, folder / "kernels")
        return load_bundle(folder)

    def agreement(self, what: str, found: NDArray[np.uint8], expected: NDArray[np.uint8], precision: str) -> float:
        """Share of equal labels. Raises VerificationError below the limit."""
        if found.shape != expected.shape:
            raise VerificationError(f"{what}: labels of {found.shape}, expected {expected.shape}")
        share = float((found == expected).mean())
        if share < AGREEMENT[precision]:
            raise VerificationError(
                f"{what}: {share:.4%} of the labels are the CPU's, expected at least {AGREEMENT[precision]:.1%}"
            )
        return round(share, 6)


def gpu(checks: Checks) -> dict[str, Any]:
    """What GPU there is."""
    from ..engine.tensorrt.gpus import find_gpus

    found = find_gpus()
    if not found.devices:
        raise BackendMissingError(found.reason)
    names = [f"{device.name} ({device.capability / 10})" for device in found.devices]
    return {"driver": found.driver, "cuda": found.cuda, "gpus": "; ".join(names)}


def _decode(checks: Checks, device: Device) -> dict[str, Any]:
    """Fused decode + int2float on a device: floats equal to the CPU's, bit for bit, and damage found."""
    from ..errors import InputError
    from ..kernels.gpu.launch import GpuDecoder

    rng = np.random.default_rng(0)
    levels = 1 << checks.header.bits
    codebook = Scaling("codebook", centres=tuple(np.linspace(-4.0, 5.0, levels - levels // 4).tolist()))
    ranges = (Scaling("fixed", -3.0, 5.5), Scaling("channel"), Scaling("tensor"))
    sets = [(checks.kernels(device.capability, some[0]), some) for some in (ranges, (codebook,))]
    batches = 0
    for shape, (kernels, scalings) in product(AWKWARD, sets):
        for scaling in scalings:
            header = replace(checks.header, latent_shape=shape, source_size=(0, 0), scaling=scaling)
            latents = rng.laplace(0, 1.5, (FRAMES, *shape)).astype(np.float32)
            payloads = [entropy.encode_latent(latent, header) for latent in latents]
            expected = np.stack([entropy.decode_latent(payload, header) for payload in payloads])
            for floats in FLOATS:
                decoder = GpuDecoder(device, kernels, header, FRAMES, floats)
                for count in (1, FRAMES):
                    found = decoder.decode(payloads[:count])
                    if not np.array_equal(found, expected[:count].astype(floats)):
                        raise VerificationError(f"{shape}, {scaling.mode}, {floats}, batch {count}: other floats")
                    batches += 1
    kernels = checks.kernels(device.capability)
    bad = bytearray(checks.payloads[-1])
    bad[-1] ^= 0x80  # the last lane's last bit: filling, or a bit of its last state, which has to be 0
    decoder = GpuDecoder(device, kernels, checks.header, FRAMES, FLOATS[0])
    try:
        decoder.decode([*checks.payloads[:-1], bytes(bad)])
    except InputError:
        return {"device": device.name, "batches": batches, "floats": "equal", "damage": "found"}
    raise VerificationError("a damaged payload was decoded without a word")


def decode_bindings(checks: Checks) -> dict[str, Any]:
    """Compiled kernels through cuda.bindings."""
    from ..kernels.gpu.launch import Gpu

    with Gpu() as device:
        return _decode(checks, device)


def decode_pycuda(checks: Checks) -> dict[str, Any]:
    """Compiled kernels through PyCUDA."""
    from ..engine.tensorrt.execution import open_device

    with open_device() as device:
        return _decode(checks, device)


def decode_triton(checks: Checks) -> dict[str, Any]:
    """The kernels as Triton launches them itself, fused and apart."""
    import torch

    if not torch.cuda.is_available():
        raise BackendMissingError(f"torch {torch.__version__} sees no CUDA device")
    from .gpu_entropy import Bench, check

    rng = np.random.default_rng(0)
    for shape in AWKWARD:
        q = np.clip(rng.laplace(128, 6, shape).round(), 0, 255).astype(np.uint8)
        for count in (1, FRAMES):
            check(Bench(q, count, checks.bundle.codec.tile, "cuda"))
    return {"batches": 2 * len(AWKWARD), "floats": "equal", "damage": "found"}


def graph(checks: Checks) -> dict[str, Any]:
    """A captured CUDA graph of the decoder, on PyCUDA's stream through cuda.bindings, against the same calls."""
    from ..engine.tensorrt.execution import open_device
    from ..kernels.gpu import shapes
    from ..kernels.gpu.batch import plan_batch
    from ..kernels.gpu.launch import DecodeKernel

    header = checks.header
    with open_device() as device, device.active():
        kernel = DecodeKernel(device, checks.kernels(device.capability), header, "float32")
        batch = plan_batch(checks.payloads, header)
        data, out = device.allocate(batch.data.nbytes), device.allocate(4 * batch.frames * header.symbols)
        history = device.allocate(4 * shapes.history_words(batch.lane_count, header.tile))
        damaged, stream = device.allocate(4 * batch.frames), device.stream()
        room = device.pinned(batch.data.nbytes)
        room[:] = batch.data

        def body() -> None:
            device.upload(data, room, stream)
            device.fill(damaged, shapes.SOUND, batch.frames, stream)
            kernel.start(batch, header, batch.word_count, stream, data=data, history=history, damaged=damaged, out=out)

        captured = device.capture(stream, body, 3)
        found = np.empty((batch.frames, *header.latent_shape), np.float32)
        device.fill(out, 0, found.size, stream)
        for _ in range(3):
            device.replay(captured, stream)
        device.download(found, out, stream)
    expected = np.stack([entropy.decode_latent(payload, header) for payload in checks.payloads])
    if not np.array_equal(found, expected):
        raise VerificationError("the replayed graph gave other floats than the CPU")
    return {"nodes": captured.nodes, "floats": "equal"}


def _engines(checks: Checks, flavour: str) -> dict[str, Any]:
    """Engines built for this GPU: each segmenter as it is, then bytes to labels fused, in graphs and without.

    fp32 and fp16 are compared with the CPU's fp32, int8 with the same int8 model on the CPU, where the bundle has one.
    """
    from ..engine.placement import Placement
    from ..engine.tensorrt.api import NAMES, open_flavour
    from ..engine.tensorrt.sidecar import ENGINE_FOLDER, Profile
    from ..export.tensorrt import build_role

    found: dict[str, Any] = {"version": open_flavour(flavour).version}
    bundle = checks.copied(flavour)
    frames = Profile((1, *SIZE), (2, *SIZE), (FRAMES, *SIZE))
    for precision in ("fp32", "fp16", "int8"):
        if precision == "int8" and "int8" not in bundle.variants("segmenter"):
            found["int8"] = "the bundle has none"
            continue
        images = list(checks.frames) if precision == "fp16" else None
        for role in ("segmenter", "rgb_segmenter"):
            build_role(bundle, role, precision, flavour, frames, (), bundle.path / ENGINE_FOLDER, images=images)
        labels, rgb_labels = checks.cpu_labels("int8" if precision == "int8" else "fp32")
        placement = Placement("tensorrt", precision=precision)
        with Segmenter(bundle, placement) as segmenter:
            latents = segmenter.entropy_decode(checks.payloads, checks.header)
            what = f"segmenter {precision}"
            found[what] = checks.agreement(what, segmenter.labels(latents, SIZE), labels, precision)
            found["provider"] = segmenter.backend.provider
        if not found["provider"].startswith(f"{NAMES[flavour]} "):  # one name begins with the other
            raise VerificationError(f"asked for {NAMES[flavour]}, found {found['provider']}")
        with RgbSegmenter(bundle, placement) as rgb:
            what = f"rgb_segmenter {precision}"
            found[what] = checks.agreement(what, rgb.labels(checks.frames), rgb_labels, precision)
        for graphs in (False, True):
            what = f"fused {precision}{' in graphs' if graphs else ''}"
            found[what] = _fused(checks, bundle, precision, labels, graphs, what)
    return found


def _fused(
    checks: Checks, bundle: Bundle, precision: str, expected: NDArray[np.uint8], graphs: bool, what: str
) -> float:
    """Bytes to labels, three times over all frames: the first run of a shape is not captured, the third replays."""
    from ..engine.tensorrt.runner import FusedSegmenter

    shares = []
    with FusedSegmenter(bundle, checks.header, SIZE, precision, batch=2, slots=2, graphs=graphs) as fused:
        for turn in range(3):
            batches = [checks.payloads[start : start + 2] for start in range(0, FRAMES, 2)]
            labels = np.concatenate([fused.collect(fused.submit(batch)).labels for batch in batches])
            shares.append(checks.agreement(f"{what}, turn {turn}", labels, expected, precision))
    return min(shares)


def tensorrt(checks: Checks) -> dict[str, Any]:
    """Full TensorRT."""
    return _engines(checks, "tensorrt")


def tensorrt_rtx(checks: Checks) -> dict[str, Any]:
    """TensorRT-RTX, whose list of GPUs lacks the H100: whether its runtime takes one is found out here."""
    return _engines(checks, "tensorrt-rtx")


def torch_backend(checks: Checks) -> dict[str, Any]:
    """An exported program with random weights, compiled for the GPU, against its graph on the CPU."""
    import torch

    from ..engine.backends import open_backend
    from ..export.onnx import segmenter_graph
    from ..export.program import write_program
    from ..models import registry

    if not torch.cuda.is_available():
        raise BackendMissingError(f"torch {torch.__version__} sees no CUDA device")
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for role, network, options in (
        ("segmenter", "compact-latent", {"channels": 32, "classes": 11}),
        ("rgb_segmenter", "compact-rgb", {"classes": 11}),
    ):
        graph = segmenter_graph(registry.create(network, **options), rgb=role == "rgb_segmenter")
        path = write_program(graph, checks.folder / f"{role}.pt2", role, 32, 8)
        with open_backend(path, "torch") as backend:
            for batch, height, width in ((1, 8, 8), (2, *SIZE)):
                frames = synthetic_frames(batch, height, width)
                if role == "rgb_segmenter":
                    source: NDArray[Any] = frames
                else:
                    shape = (batch, 32, height // 8, width // 8)
                    source = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
                with torch.no_grad():
                    expected = graph(torch.from_numpy(source)).numpy()
                where = f"{role} {batch}x{height}x{width}"
                found[where] = checks.agreement(where, backend.run(source), expected, "fp32")
            found["provider"] = backend.provider
    return found


def onnxruntime_cuda(checks: Checks) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider, read back, against its CPU provider."""
    from ..engine.placement import Placement

    placement = Placement("onnxruntime", provider="cuda")
    with Segmenter(checks.bundle, placement) as segmenter:
        latents = segmenter.entropy_decode(checks.payloads, checks.header)
        share = checks.agreement("segmenter", segmenter.labels(latents, SIZE), checks.cpu_labels()[0], "fp32")
        return {"provider": segmenter.backend.provider, "segmenter": share}


PARTS: dict[str, Callable[[Checks], dict[str, Any]]] = {
    "gpu": gpu,
    "decode-triton": decode_triton,
    "decode-cuda-bindings": decode_bindings,
    "decode-pycuda": decode_pycuda,
    "graph": graph,
    "tensorrt": tensorrt,
    "tensorrt-rtx": tensorrt_rtx,
    "quantize": quantize,
    "sender": sender,
    "torch": torch_backend,
    "onnxruntime-cuda": onnxruntime_cuda,
}
