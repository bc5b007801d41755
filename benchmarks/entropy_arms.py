"""The arms of the entropy benchmark: this package's coders, and what others offer for the same symbols."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..bitstream import Scaling, StreamHeader
from ..bitstream.header import DEFAULT_TILE, Coder, tile_for
from ..errors import BackendMissingError, UsageError, VerificationError, missing_extra
from ..kernels import entropy, native_available
from ..kernels.dequantize import dequantize
from ..kernels.dispatch import Implementation
from . import constriction_coder

Symbols = NDArray[np.uint8]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Setup:
    """What is measured and how.

    bits: n; symbols lie in [0, 2^n).
    tile, lane_symbols: a lane of the context coder, and of Huffman codes.
    threads: our coders decode once with each of these numbers of threads; everything else takes one.
    repeats: how often an arm is timed at most; seconds: of work after which it leaves the rounds, each way.
    """

    bits: int = 8
    tile: tuple[int, int] = DEFAULT_TILE
    lane_symbols: int = 4096
    implementation: Implementation = "auto"
    threads: tuple[int, ...] = (1,)
    repeats: int = 100
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.implementation == "auto":
            object.__setattr__(self, "implementation", "native" if native_available() else "numpy")
        if self.implementation == "numpy" and self.threads != (1,):
            raise UsageError("the NumPy reference decodes with one thread", hint="leave --threads out")

    @property
    def scaling(self) -> Scaling:
        """The time does not depend on the range; this one makes the floats equal the symbols."""
        return Scaling("fixed", 0.0, float((1 << self.bits) - 1))


@dataclass
class Arm:
    """One coder: `encode` makes bytes of the symbols, `decode` fills the caller's float32 buffer from them.

    detail: what a row says about it. times_encode: False where the arm before it encodes the same.
    times: seconds of every repeat, by way.
    """

    name: str
    detail: dict[str, Any]
    encode: Callable[[], bytes]
    decode: Callable[[bytes], object]
    times_encode: bool = True
    times: dict[str, list[float]] = field(default_factory=lambda: {"encode": [], "decode": []})

    def check(self, q: Symbols, out: NDArray[np.float32]) -> bytes:
        """The payload, once it has come back as q in `out` (VerificationError where it does not)."""
        out.fill(-1)
        payload = self.encode()
        self.decode(payload)
        if not np.array_equal(out, q.astype(np.float32)):
            raise VerificationError(f"{self.name}: the symbols did not come back")
        return payload


@dataclass(frozen=True)
class Missing:
    """An arm that cannot run: its package is not installed."""

    name: str
    error: BackendMissingError


@dataclass(frozen=True)
class Codec:
    """A coder of others: symbols (C, h, w) to bytes and back."""

    detail: dict[str, Any]
    encode: Callable[[Symbols], bytes]
    decode: Callable[[bytes, Shape], Symbols]


def make_arms(q: Symbols, out: NDArray[np.float32], setup: Setup) -> list[Arm | Missing]:
    """The arms for symbols q (C, h, w), all decoding into out (float32, same shape)."""
    arms: list[Arm | Missing] = []
    # Of a frame alone, "inter" makes what "context" makes, and a byte.
    for coder in (coder for coder in get_args(Coder) if coder != "inter"):
        arms += [_ours(coder, q, out, setup, threads) for threads in setup.threads]
    for name, package, make in OTHERS:
        try:
            arms.append(_theirs(name, make(), q, out, setup))
        except ImportError:
            arms.append(Missing(name, missing_extra(package, "bench")))
    return arms


def _ours(coder: Coder, q: Symbols, out: NDArray[np.float32], setup: Setup, threads: int) -> Arm:
    tile, implementation = tile_for(coder, setup.tile), setup.implementation
    header = StreamHeader(
        bytes(32), q.shape, setup.bits, setup.scaling, coder=coder, lane_symbols=setup.lane_symbols, tile=tile
    )
    lane = {"tile": list(tile)} if coder == "context" else {"lane_symbols": setup.lane_symbols}
    return Arm(
        coder,
        {"implementation": implementation, **lane, "threads": threads},
        lambda: entropy.encode_symbols(q, header, implementation=implementation),
        lambda payload: entropy.decode_latent(payload, header, out, threads, implementation),
        times_encode=threads == setup.threads[0],
    )


def _theirs(name: str, codec: Codec, q: Symbols, out: NDArray[np.float32], setup: Setup) -> Arm:
    lo, hi = setup.scaling.lo, setup.scaling.hi

    def decode(payload: bytes) -> None:
        dequantize(codec.decode(payload, q.shape), setup.bits, lo, hi, out=out, implementation=setup.implementation)

    return Arm(name, codec.detail, lambda: codec.encode(q), decode)


def _plain(
    detail: dict[str, Any], compress: Callable[[memoryview], bytes], decompress: Callable[[bytes], bytes]
) -> Codec:
    """A compressor of bytes: the symbols as they lie, a byte each."""
    return Codec(
        detail,
        lambda q: compress(q.reshape(-1).data),
        lambda payload, shape: np.frombuffer(decompress(payload), np.uint8).reshape(shape),
    )


def _zlib(level: int) -> Codec:
    return _plain({"zlib": zlib.ZLIB_RUNTIME_VERSION}, lambda data: zlib.compress(data, level), zlib.decompress)


def _zstd() -> Codec:
    import zstandard

    detail = {"zstandard": zstandard.__version__, "zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}
    return _plain(detail, zstandard.ZstdCompressor(level=1).compress, zstandard.ZstdDecompressor().decompress)


def _constriction(differences: bool) -> Codec:
    import constriction  # noqa: F401 - the coder imports it inside what is timed, where it must not be for the first time

    model = "ANS, a histogram a channel" + (", of differences where they take less" if differences else "")
    detail = {"constriction": metadata.version("constriction"), "model": model}
    return Codec(detail, partial(constriction_coder.encode, differences=differences), constriction_coder.decode)


# Name, the package that it needs, and how to make it.
OTHERS: tuple[tuple[str, str, Callable[[], Codec]], ...] = (
    ("zstd -1", "zstandard", _zstd),
    ("zlib -1", "", partial(_zlib, 1)),
    ("zlib -9", "", partial(_zlib, 9)),
    ("constriction", "constriction", partial(_constriction, False)),
    ("constriction diff", "constriction", partial(_constriction, True)),
)
