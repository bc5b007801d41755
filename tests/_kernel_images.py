"""Sets of compiled kernels without code, for tests of everything around it; and a stream's payloads for them."""

from __future__ import annotations

import numpy as np

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.kernels import entropy
from latentseg.kernels.gpu.images import KernelImage, KernelSet

HEADER = StreamHeader(bytes(32), (3, 10, 9), 8, Scaling("channel"), coder="context", tile=(4, 5))
_NUMBERS = {"word_count", "frames", "channel_count", "height", "width", "ranges_a_frame"}
ARGUMENTS = (
    *((name, "int32" if name in _NUMBERS else "pointer") for name in (
        "words", "word_count", "lanes", "channels", "ranges", "tables", "table_map", "history", "damaged", "out",
        "frames", "channel_count", "height", "width", "ranges_a_frame",
    )),
    ("scratch", "scratch"),
)  # fmt: skip
SCALING_ARGUMENTS = {  # of the kernels of float2int
    kernel: (
        *((name, "int32" if name in ("size", "parts", "range_rows") else "pointer") for name in names.split()),
        ("scratch", "scratch"),
    )
    for kernel, names in (("minmax", "x partial size parts"),
                          ("quantize", "x partial q ranges bad size parts range_rows"))
}  # fmt: skip


def image(arch: int, variant: str = "float16") -> KernelImage:
    """context_decode for a compute capability."""
    return KernelImage("context_decode", variant, arch, f"code {arch} {variant}".encode(), ARGUMENTS, 1, 512, 100)


def kernels(*archs: int, bits: int = 8, tile: tuple[int, int] = (4, 5)) -> KernelSet:
    """A set for these compute capabilities, 90 where none is given, of both floats, and float2int's kernels."""
    images = [image(arch, variant) for arch in archs or (90,) for variant in ("float16", "float32")]
    images += [
        KernelImage(kernel, "float32", arch, f"code {arch} {kernel}".encode(), arguments, 4, 0, 40)
        for arch in archs or (90,)
        for kernel, arguments in SCALING_ARGUMENTS.items()
    ]
    return KernelSet(bits, tile, "3.6.0", tuple(images))


def payload(seed: int, header: StreamHeader = HEADER) -> bytes:
    """A frame of a stream with ranges a channel; its second channel is constant."""
    rng = np.random.default_rng(seed)
    q = np.clip(np.rint(rng.normal(100, 4, header.latent_shape)), 0, 255).astype(np.uint8)
    q[1] = 7
    lo = rng.normal(size=header.latent_shape[0]).astype(np.float32)
    return entropy.encode_symbols(q, header, lo, lo + 1)
