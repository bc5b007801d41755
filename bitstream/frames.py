"""The framing of one payload: 28 bytes in front of it.

    0..3    sync marker  AB 4C 53 46
    4..7    frame index                u32   counts from 0, one up a frame
    8..15   timestamp                  i64   microseconds
    16..19  payload length             u32   bytes
    20..23  CRC32 of the payload       u32
    24..27  CRC32 of bytes 0..23       u32

The payload's CRC sits in the header, under the header's own CRC: a header that fits is right about where its payload
ends, and a damaged payload cannot make the reader lose its place.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MARKER = b"\xabLSF"
FRAME_HEADER_BYTES = 28
MAX_FRAMES = 1 << 32

_FIELDS = struct.Struct("<4sIqII")


@dataclass(frozen=True)
class Frame:
    """One frame as stored: its number, its time in microseconds, and the coder's bytes."""

    index: int
    timestamp_us: int
    payload: bytes


@dataclass(frozen=True)
class Damage:
    """Something in a stream that could not be read, and was passed over.

    offset: where it begins, in bytes from the start of the stream.
    reason: for people.
    frame_index: the (first) frame that it cost, None when it cost none that is known of.
    lost: how many frames it is known to have cost.
    """

    offset: int
    reason: str
    frame_index: int | None
    lost: int = 0


@dataclass(frozen=True)
class FrameHeader:
    """The fields of a frame's header, without its payload."""

    index: int
    timestamp_us: int
    length: int
    payload_crc: int


def pack_frame_header(header: FrameHeader) -> bytes:
    """The 28 bytes in front of a payload."""
    fields = _FIELDS.pack(MARKER, header.index, header.timestamp_us, header.length, header.payload_crc)
    return fields + struct.pack("<I", zlib.crc32(fields))


def unpack_frame_header(data: bytes) -> FrameHeader | None:
    """The header in 28 bytes, None when the marker or the CRC does not fit."""
    if data[:4] != MARKER or zlib.crc32(data[:24]) != int.from_bytes(data[24:28], "little"):
        return None
    _, index, timestamp_us, length, payload_crc = _FIELDS.unpack(data[:24])
    return FrameHeader(index, timestamp_us, length, payload_crc)


def nearly_marker(data: bytes) -> bool:
    """Whether bytes that are no frame begin as one would: at most 6 of the 32 marker bits differ (chance: 3e-4)."""
    if len(data) < len(MARKER):
        return MARKER.startswith(data)
    return (int.from_bytes(data[:4], "little") ^ int.from_bytes(MARKER, "little")).bit_count() <= 6
