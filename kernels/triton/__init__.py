"""The hot operations as Triton kernels: float2int, int2float, and the fused entropy decode + int2float of coder 2.

Only here triton is imported (and torch, by `torch_ops`). A serving machine needs nothing of it: `compile` makes machine
code of the kernels, which `latentseg.kernels.gpu` launches.
"""

import os


def interpreted() -> bool:
    """Whether Triton interprets kernels in this process, as its variable says, instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
