"""The sender's parts of `gpu_suite --check`: float2int on its own, then frames to payloads, against the CPU's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bitstream import Scaling, StreamHeader
from ..bitstream.payload import scale_count
from ..engine.roles import Compressor
from ..errors import VerificationError
from ..kernels import entropy

if TYPE_CHECKING:
    from ..kernels.gpu.device import Device
    from ..kernels.gpu.launch import QuantizeKernel
    from .gpu_checks import Checks

FRAMES = 4
# A single position, latents that no block fits, and one whose range is found in two passes.
SHAPES = ((3, 1, 1), (5, 17, 31), (2, 513, 513))
# Least share of symbols that must be as the CPU's, and how far latents may lie from its, in steps of the quantiser.
SYMBOLS, LATENT_STEPS = 0.999, 0.05


def quantize(checks: Checks) -> dict[str, Any]:
    """float2int through PyCUDA: payloads equal to the CPU's, byte for byte, and what is not finite found."""
    from ..engine.tensorrt.execution import open_device
    from ..kernels.gpu.launch import QuantizeKernel

    rng = np.random.default_rng(0)
    batches = 0
    centres = tuple(np.linspace(-4.0, 5.0, 1 << checks.header.bits).tolist())
    with open_device() as device, device.active():
        for scaling in (
            Scaling("fixed", -3.0, 5.5), Scaling("channel"), Scaling("tensor"), Scaling("codebook", centres=centres)
        ):  # fmt: skip
            kernels = checks.kernels(device.capability, scaling)
            for shape in SHAPES:
                header = replace(checks.header, latent_shape=shape, source_size=(0, 0), scaling=scaling)
                kernel = QuantizeKernel(device, kernels, header)
                latents = rng.laplace(0, 1.5, (FRAMES, *shape)).astype(np.float32)
                latents[1, 0] = 2.5  # a range may be empty
                where = f"{shape}, {scaling.mode}"
                if _float2int(device, kernel, header, latents) != [entropy.encode_latent(z, header) for z in latents]:
                    raise VerificationError(f"{where}: other symbols or ranges")
                latents[0, 0, 0, 0], latents[2], latents[-1, -1, -1, -1] = np.nan, np.nan, np.inf
                found = _float2int(device, kernel, header, latents)
                if [place for place, payload in enumerate(found) if not payload] != [0, 2, FRAMES - 1]:
                    raise VerificationError(f"{where}: values that are not finite were quantised without a word")
                batches += 2
        return {"device": device.name, "batches": batches, "payloads": "equal", "not finite": "found"}


def _float2int(
    device: Device, kernel: QuantizeKernel, header: StreamHeader, latents: NDArray[np.float32]
) -> list[bytes]:
    """Payloads of latents that were quantised on a device; empty of those that it flags."""
    from ..kernels.gpu.rows import quantize_rows

    rows = quantize_rows(header, len(latents))
    symbols = np.empty(latents.shape, np.uint8)
    ranges, bad = np.empty((len(latents), rows.rows // len(latents), 2), np.float32), np.empty(rows.rows, np.int32)
    x, partial = device.allocate(latents.nbytes), device.allocate(rows.partial_bytes)
    ends = [(array, device.allocate(array.nbytes)) for array in (symbols, ranges, bad)]
    device.upload(x, latents)
    device.fill(ends[2][1], 0, rows.rows)
    kernel.start(rows, 0, x=x, partial=partial, q=ends[0][1], ranges=ends[1][1], bad=ends[2][1])
    for array, address in ends:
        device.download(array, address)
        device.free(address)
    device.free(x)
    device.free(partial)
    ranged = scale_count(header) > 0
    return [
        b"" if flags.any() else entropy.encode_symbols(q, header, *((pairs[:, 0], pairs[:, 1]) if ranged else ()))
        for flags, q, pairs in zip(bad.reshape(len(latents), -1), symbols, ranges, strict=True)
    ]


def sender(checks: Checks) -> dict[str, Any]:
    """Frames to payloads with an fp32 engine built for this GPU, in graphs and without.

    From the device's own latents the payloads must be the CPU's. The latents need not: float arithmetic differs between
    TensorRT and ONNX Runtime, so a symbol may lie on the other side of a boundary; how many do is stated.
    """
    from ..engine.tensorrt.api import FLAVOURS, is_installed, open_flavour
    from ..engine.tensorrt.sender import FusedCompressor
    from ..engine.tensorrt.sidecar import ENGINE_FOLDER, Profile
    from ..export.tensorrt import build_role

    flavour = min(FLAVOURS, key=lambda name: not is_installed(name))
    found: dict[str, Any] = {"version": open_flavour(flavour).version}
    bundle = checks.copied("sender")
    size, count = checks.header.source_size, len(checks.frames)
    profile = Profile((1, *size), (2, *size), (count, *size))
    build_role(bundle, "compressor", "fp32", flavour, profile, (), bundle.path / ENGINE_FOLDER)
    with Compressor(bundle) as compressor:
        expected = compressor.latents(checks.frames)
    compared: list[tuple[float, int, float]] = []
    for graphs in (False, True):
        with FusedCompressor(bundle, checks.header, size, batch=2, slots=2, threads=2, graphs=graphs) as fused:
            for start in [*range(0, count, 2)] * 3:  # the first run of a shape is not captured, the third replays
                ticket = fused.submit(checks.frames[start : start + 2])
                latents = fused.latents(ticket)
                payloads = fused.collect(ticket).payloads
                if payloads != [entropy.encode_latent(z, checks.header) for z in latents]:
                    raise VerificationError(f"frames {start} on: other payloads than the CPU's of the same latents")
                pairs = zip(latents, expected[start : start + 2], strict=True)
                compared += [_compared(checks, latent, truth) for latent, truth in pairs]
            found["provider"] = fused.provider
    shares, apart, off = zip(*compared, strict=True)
    found |= {
        "float2int": "exact", "symbols": round(min(shares), 6), "most levels apart": max(apart),
        "latents off, steps": round(max(off), 6),
    }  # fmt: skip
    if not max(off) <= LATENT_STEPS:  # NaN too
        raise VerificationError(f"latents lie {max(off):.3g} steps from the CPU's, expected at most {LATENT_STEPS}")
    if min(shares) < SYMBOLS or max(apart) > 1:
        raise VerificationError(
            f"{min(shares):.4%} of a frame's symbols are the CPU's, and the others up to {max(apart)} levels apart, "
            f"expected at least {SYMBOLS:.1%}, and 1"
        )
    return found


def _compared(checks: Checks, latent: NDArray[np.float32], truth: NDArray[np.float32]) -> tuple[float, int, float]:
    """Share of symbols that are equal, levels between the farthest two, steps between the farthest latents."""
    from ..kernels.dequantize import steps

    header = checks.header
    ours, theirs = (entropy.encode_latent(z, header) for z in (latent, truth))
    first, second = (entropy.decode_symbols(payload, header).astype(np.int16) for payload in (ours, theirs))
    levels = np.abs(first - second)
    if header.scaling.mode == "codebook":
        step = np.diff(np.array(header.scaling.centres, np.float32)).min(keepdims=True)
    else:
        step = steps(header.bits, *entropy.payload_range(theirs, header))
    # Where a range is empty, rounding errors are measured against the latent itself.
    step = np.maximum(step, 1e-5 * np.abs(truth).max())
    off = np.abs(latent - truth) / step[:, None, None]
    return float((levels == 0).mean()), int(levels.max()), float(off.max())
