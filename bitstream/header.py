"""The stream header: what every frame of a stream shares, 100 bytes, written twice, and a codebook behind them.

Layout of one copy (little-endian; docs/format.md has the same table):

    0..7    magic 89 4C 53 45 47 0D 0A 1A     40..43  frame rate, denominator   u32
    8..9    version                     u16   44..47  fixed lo                  f32
    10      coder                       u8    48..51  fixed hi                  f32
    11      dictionary                  u8    52..55  lane symbols              u32
    12      bits                        u8    56..63  coder parameters           8 bytes
    13      scaling mode                u8    64..95  codec id                  32 bytes
    14..15  codebook: centres L; else 0 u16   96..99  CRC32 of bytes 0..95      u32
    16..27  latent C, h, w              3 x u32
    28..35  source height, width        2 x u32
    36..39  frame rate, numerator       u32

Behind both copies, under scaling "codebook" alone, twice as well: L centres (f32), and the CRC32 of their bytes (u32).

A header is checked in full before anything is allocated from what it says.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, InputError, UsageError

# The first byte is not text and not UTF-8; CR LF and ^Z show a stream that was sent as text (as PNG does it).
MAGIC = b"\x89LSEG\r\n\x1a"
VERSION = 1
COPY_BYTES = 100
HEADER_BYTES = 2 * COPY_BYTES  # with a codebook more: StreamHeader.size

# Caps. What lies above them is refused before it is allocated: 2^26 symbols are 256 MiB of float32, enough for a
# 16384 x 16384 frame at stride 8 with 16 channels.
MAX_CHANNELS = 4096
MAX_SIDE = 1 << 16
MAX_SYMBOLS = 1 << 26
MAX_SOURCE_PIXELS = 1 << 28
MIN_LANE_SYMBOLS = 16
MAX_LANE_SYMBOLS = 1 << 24
MAX_CENTRES = 256

ScalingMode = Literal["tensor", "channel", "fixed", "codebook"]
SCALING_MODES: tuple[ScalingMode, ...] = get_args(ScalingMode)
# The coder's name for people, and its two bytes in the header: number, and which dictionary (of Huffman codes: one a
# frame as in the paper, or one a channel). A new coder takes the next number and the version stays: a reader that does
# not know the number says so.
Coder = Literal["context", "inter", "huffman-channel", "huffman-frame"]
CODERS: dict[Coder, tuple[int, int]] = {
    "context": (2, 0),
    "inter": (3, 0),
    "huffman-channel": (1, 1),
    "huffman-frame": (1, 0),
}
DEFAULT_CODER: Coder = "context"
TILED_CODERS = ("context", "inter")  # whose lanes are tiles
DEFAULT_TILE = (14, 32)

_FIXED = struct.Struct("<8sHBBBBH3I2I2I2fI8s32s")
_TILE = struct.Struct("<2HI")
assert _FIXED.size == COPY_BYTES - 4


def tile_for(coder: str, tile: tuple[int, int]) -> tuple[int, int]:
    """The `tile` of a stream header under `coder`: (0, 0) where lanes are runs."""
    return tile if coder in TILED_CODERS else (0, 0)


def is_tile(rows: int, columns: int) -> bool:
    """Whether a lane of a tiled coder may have this size."""
    return max(rows, columns) < 1 << 16 and MIN_LANE_SYMBOLS <= rows * columns <= MAX_LANE_SYMBOLS


def as_centres(centres: Sequence[float] | NDArray[np.float32]) -> NDArray[np.float32]:
    """A codebook's centres as float32 (L,).

    Raises InputError unless they are 2 to 256, ascending as float32, and finite even when doubled (midpoints add two).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.array(centres, np.float32)
        finite = np.isfinite(found + found)
    if found.ndim != 1 or not 2 <= len(found) <= MAX_CENTRES:
        what = f"{len(found)} centres" if found.ndim == 1 else f"shape {found.shape}"
        raise InputError(f"codebook of {what}, expected 2 to {MAX_CENTRES} centres")
    if not finite.all():
        i = int(np.flatnonzero(~finite)[0])
        raise InputError(f"codebook: centre {i} is {found[i]}, expected numbers below 1.7e+38")
    falls = np.flatnonzero(found[1:] <= found[:-1])
    if len(falls):
        i = int(falls[0])
        raise InputError(
            f"codebook: centre {i + 1} is {found[i + 1]} and centre {i} is {found[i]}, expected ascending centres",
            hint="sort the centres, and drop those that are equal as float32",
        )
    return found


def codebook_bits(count: int) -> int:
    """The bits n of a stream whose codebook has `count` centres: the fewest that hold their indices."""
    return (count - 1).bit_length()


@dataclass(frozen=True)
class Scaling:
    """How float2int makes symbols: over a range (lo, hi) (paper eq. 2 and 4), or by the nearest centre of a codebook.

    mode: "tensor" (min and max of each frame's latent, stored in its payload), "channel" (the same for each channel),
    "fixed" (belongs to the codec, stored once in the stream header), or "codebook" (a symbol is the index of a centre;
    the centres belong to the codec and are stored once, too).
    lo, hi: the fixed range, kept as the float32 that the file stores; 0.0 for the other modes.
    centres: those of the codebook, ascending, kept as the float32 that the file stores; () for the other modes.

    Raises InputError for a range or centres that cannot be, UsageError for those of another mode.
    """

    mode: ScalingMode
    lo: float = 0.0
    hi: float = 0.0
    centres: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in SCALING_MODES:
            raise UsageError(f"scaling mode {self.mode!r}: expected one of {', '.join(SCALING_MODES)}")
        with np.errstate(over="ignore"):
            lo, hi = np.float32(self.lo), np.float32(self.hi)
            span = np.float32(255) * (hi - lo)
        if self.mode != "fixed" and (lo != 0 or hi != 0):
            owner = "centres" if self.mode == "codebook" else "frames"
            raise UsageError(f"scaling mode {self.mode!r} takes no lo and hi: the {owner} carry them")
        if self.mode != "codebook" and len(self.centres):
            raise UsageError(f"scaling mode {self.mode!r} takes no centres, found {len(self.centres)}")
        if not (np.isfinite(span) and lo <= hi):
            raise InputError(f"fixed scaling range [{self.lo}, {self.hi}]: expected finite lo <= hi")
        object.__setattr__(self, "lo", float(lo))
        object.__setattr__(self, "hi", float(hi))
        centres = as_centres(self.centres).tolist() if self.mode == "codebook" else ()
        object.__setattr__(self, "centres", tuple(centres))


@dataclass(frozen=True)
class StreamHeader:
    """What every frame of a stream shares. Values are checked when it is made (InputError with found and expected).

    codec_id: 32 bytes, sha256 that names the codec; 32 zero bytes: unnamed.
    latent_shape: (C, h, w) of each frame's symbols.
    bits: n of float2int, 1..8; symbols lie in [0, 2^n). Of a codebook, the fewest that hold its centres' indices.
    source_size: (height, width) of the source frames in pixels; (0, 0): unknown.
    frame_rate: (numerator, denominator) in frames a second; (0, 1): unknown.
    coder: "context" (each frame alone), "inter" (the smallest: frames may refer to the one before), or Huffman codes:
        one a frame ("huffman-frame", as in the paper) or one a channel.
    lane_symbols: symbols in an independently decodable lane of Huffman codes (the last one of a frame or channel may be
        shorter); with coders "context" and "inter" it follows from the tile.
    tile: (rows, columns) of a lane of these two, DEFAULT_TILE unless given; (0, 0) for the others.
    """

    codec_id: bytes
    latent_shape: tuple[int, int, int]
    bits: int
    scaling: Scaling
    source_size: tuple[int, int] = (0, 0)
    frame_rate: tuple[int, int] = (0, 1)
    coder: Coder = DEFAULT_CODER
    lane_symbols: int = 4096
    tile: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", tuple(int(v) for v in self.tile))
        if self.coder in TILED_CODERS:
            if self.tile == (0, 0):
                object.__setattr__(self, "tile", DEFAULT_TILE)
            object.__setattr__(self, "lane_symbols", math.prod(self.tile))
        object.__setattr__(self, "latent_shape", tuple(int(v) for v in self.latent_shape))
        object.__setattr__(self, "source_size", tuple(int(v) for v in self.source_size))
        object.__setattr__(self, "frame_rate", tuple(int(v) for v in self.frame_rate))
        _check(self)

    @property
    def symbols(self) -> int:
        """Symbols in a frame, C * h * w."""
        c, h, w = self.latent_shape
        return c * h * w

    @property
    def payload_cap(self) -> int:
        """Bytes that no frame's payload may exceed: 5 a symbol (a lane of one), 1024 a channel and 4096."""
        return 4096 + 1024 * self.latent_shape[0] + 5 * self.symbols

    @property
    def size(self) -> int:
        """Bytes in front of the first frame."""
        return HEADER_BYTES + 2 * codebook_bytes(len(self.scaling.centres))

    @property
    def levels(self) -> int:
        """How many symbols an encoder writes: the centres of the codebook, or 2^bits."""
        return len(self.scaling.centres) or 1 << self.bits


def _check(header: StreamHeader) -> None:
    def require(good: bool, what: str, expected: str) -> None:
        if not good:
            raise InputError(f"stream header: {what}, expected {expected}")

    require(len(header.codec_id) == 32, f"codec id of {len(header.codec_id)} bytes", "32")
    require(len(header.latent_shape) == 3, f"latent shape {header.latent_shape}", "(C, h, w)")
    c, h, w = header.latent_shape
    require(1 <= c <= MAX_CHANNELS, f"{c} latent channels", f"1..{MAX_CHANNELS}")
    require(1 <= h <= MAX_SIDE and 1 <= w <= MAX_SIDE, f"latent of {h} x {w}", f"sides in 1..{MAX_SIDE}")
    require(c * h * w <= MAX_SYMBOLS, f"{c} x {h} x {w} = {c * h * w} symbols a frame", f"at most {MAX_SYMBOLS}")
    require(1 <= header.bits <= 8, f"{header.bits} bits a symbol", "1..8")
    if header.scaling.mode == "codebook":
        _check_codebook(len(header.scaling.centres), header.bits)
    height, width = header.source_size
    known = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_SOURCE_PIXELS
    require(
        known or (height, width) == (0, 0),
        f"source frames of {height} x {width}",
        f"sides in 1..{MAX_SIDE} and at most {MAX_SOURCE_PIXELS} pixels, or 0 x 0 for unknown",
    )
    num, den = header.frame_rate
    require(0 <= num < 1 << 32 and 1 <= den < 1 << 32, f"frame rate {num}/{den}", "num >= 0 and den >= 1, 32 bits")
    if header.coder not in CODERS:
        raise ArtifactError(f"coder {header.coder!r} is not known: expected one of {', '.join(CODERS)}")
    require(len(header.tile) == 2, f"tile {header.tile}", "(rows, columns)")
    rows, columns = header.tile
    if header.coder in TILED_CODERS:
        require(1 <= rows < 1 << 16 and 1 <= columns < 1 << 16, f"tiles of {rows} x {columns}", "sides in 1..65535")
    elif (rows, columns) != (0, 0):
        raise UsageError(f"tiles of {rows} x {columns} with coder {header.coder!r}, whose lanes are runs")
    lane = header.lane_symbols
    require(
        MIN_LANE_SYMBOLS <= lane <= MAX_LANE_SYMBOLS,
        f"lanes of {lane} symbols",
        f"{MIN_LANE_SYMBOLS}..{MAX_LANE_SYMBOLS}",
    )


def _check_codebook(count: int, bits: int) -> None:
    if not (2 <= count <= MAX_CENTRES and codebook_bits(count) == bits):
        most = 1 << min(max(bits, 1), 8)
        raise InputError(
            f"stream header: codebook of {count} centres with {bits} bits a symbol, expected {most // 2 + 1} to {most}"
        )


def codebook_bytes(count: int) -> int:
    """Bytes of one copy of a codebook of `count` centres; 0 for none."""
    return 4 * count + 4 if count else 0


def pack_header(header: StreamHeader) -> bytes:
    """The header's bytes, both copies, and the codebook's: `header.size` bytes."""
    centres = header.scaling.centres
    body = _FIXED.pack(
        MAGIC,
        VERSION,
        *CODERS[header.coder],
        header.bits,
        SCALING_MODES.index(header.scaling.mode),
        len(centres),
        *header.latent_shape,
        *header.source_size,
        *header.frame_rate,
        header.scaling.lo,
        header.scaling.hi,
        header.lane_symbols,
        _TILE.pack(*header.tile, 0),
        header.codec_id,
    )
    copy = body + struct.pack("<I", zlib.crc32(body))
    codebook = struct.pack(f"<{len(centres)}f", *centres)
    codebook += struct.pack("<I", zlib.crc32(codebook)) if centres else b""
    return copy + copy + codebook + codebook


def copy_is_good(copy: bytes) -> bool:
    """Whether one 100-byte copy of a header carries the magic and its own CRC fits."""
    return copy[:8] == MAGIC and zlib.crc32(copy[:96]) == int.from_bytes(copy[96:100], "little")


def codebook_is_good(copy: bytes) -> bool:
    """Whether the CRC of one copy of a codebook fits."""
    return zlib.crc32(copy[:-4]) == int.from_bytes(copy[-4:], "little")


def unpack_codebook(copy: bytes) -> tuple[float, ...]:
    """The centres in one good copy of a codebook."""
    return struct.unpack(f"<{len(copy) // 4 - 1}f", copy[:-4])


def unpack_copy(copy: bytes, read_codebook: Callable[[int], tuple[float, ...]]) -> StreamHeader:
    """The header from one good copy.

    read_codebook: gives the centres, by how many there are; called for a stream that has a codebook, once what stands
    in this copy is known to be in order.

    Raises ArtifactError for a version, coder or mode that this reader does not know, InputError for values outside
    the caps (a CRC that fits does not make a header honest).
    """
    (_, version, coder, dictionary, bits, mode, count, c, h, w, height, width, num, den, lo, hi, lane, parameters,
     codec_id) = _FIXED.unpack(copy[:96])  # fmt: skip
    if version != VERSION:
        raise newer_version(version)
    names = {numbers: name for name, numbers in CODERS.items()}
    if coder not in {number for number, _ in names}:
        known = ", ".join(f"{number} ({name})" for (number, _), name in names.items())
        raise ArtifactError(f"stream uses coder number {coder}; this reader knows {known}", hint=_UPGRADE)
    name = names.get((coder, dictionary))
    *tile, reserved = _TILE.unpack(parameters)
    scaling_mode = SCALING_MODES[mode] if mode < len(SCALING_MODES) else None
    usual = reserved == 0 and (name in TILED_CODERS or tile == [0, 0]) and (scaling_mode == "codebook" or count == 0)
    if name is None or scaling_mode is None or not usual:
        raise ArtifactError(
            f"stream header: coder {coder}, dictionary {dictionary}, scaling {mode}, parameters {count}/"
            f"{parameters.hex()}: more than this reader knows",
            hint=_UPGRADE,
        )
    if scaling_mode != "fixed" and (lo != 0 or hi != 0):
        raise InputError(f"stream header: range [{lo}, {hi}] with scaling {scaling_mode!r}, expected [0, 0]")
    if name in TILED_CODERS and (0 in tile or lane != tile[0] * tile[1]):
        raise InputError(f"stream header: lanes of {lane} symbols, expected those of a {tile[0]} x {tile[1]} tile")
    centres: tuple[float, ...] = ()
    if scaling_mode == "codebook":
        _check_codebook(count, bits)
        centres = read_codebook(count)
    return StreamHeader(
        codec_id=codec_id,
        latent_shape=(c, h, w),
        bits=bits,
        scaling=Scaling(scaling_mode, lo, hi, centres),
        source_size=(height, width),
        frame_rate=(num, den),
        coder=name,
        lane_symbols=lane,
        tile=(tile[0], tile[1]),
    )


_UPGRADE = "the stream may come from a newer latentseg: pip install --upgrade latentseg"


def newer_version(version: int) -> ArtifactError:
    """The error for a format version that this reader does not know."""
    return ArtifactError(f".lseg version {version}; this reader knows version {VERSION}", hint=_UPGRADE)


_LOOKS = (
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (4, b"ftyp", "an MP4/MOV video"),
    (0, b"\x1aE\xdf\xa3", "a Matroska/WebM video"),
    (0, b"RIFF", "an AVI, WAV or WebP file"),
    (0, b"GIF8", "a GIF image"),
    (0, b"\x93NUMPY", "a NumPy .npy array"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x00\x00\x01\xba", "an MPEG program stream"),
)


def looks_like(start: bytes) -> str:
    """What a file that is not an .lseg looks like, from its first bytes."""
    for offset, mark, name in _LOOKS:
        if start[offset : offset + len(mark)] == mark:
            return name
    if start and all(byte in b"\t\n\r\x0c" or byte >= 32 for byte in start) and b"\x7f" not in start:
        try:
            # A multi-byte character may be cut at the end of what was read.
            start[: max(len(start) - 3, 1)].decode("utf-8")
            return "text"
        except UnicodeDecodeError:
            pass
    return "unknown data"
