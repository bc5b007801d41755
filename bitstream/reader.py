"""Reads .lseg streams, from files and from pipes, up to and after damage."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ..errors import InputError, LatentsegError
from .frames import FRAME_HEADER_BYTES, MARKER, Damage, Frame, FrameHeader, nearly_marker, unpack_frame_header
from .header import (
    COPY_BYTES,
    HEADER_BYTES,
    MAGIC,
    VERSION,
    StreamHeader,
    codebook_bytes,
    codebook_is_good,
    copy_is_good,
    looks_like,
    newer_version,
    unpack_codebook,
    unpack_copy,
)

# One read asks for no more than this, so that a length that lies costs at most this much memory.
_CHUNK = 1 << 16


class Reader:
    """Iterates over the frames of a stream in order; damaged ones are reported and passed over.

    Never seeks. Takes no more from a pipe than has arrived, so a frame comes out as soon as its last byte is there.

    file: open for binary reading, at the stream's first byte. It stays open: it belongs to the caller.
    on_damage: called with each Damage as it is found; all of them are in `.damages` too.

    Raises (from the constructor) InputError for an empty file, one that is not an .lseg, a header that is cut, damaged
    in both copies (or its codebook) or lies about sizes; ArtifactError for a version or coder that it does not know.
    """

    def __init__(self, file: BinaryIO, on_damage: Callable[[Damage], None] | None = None) -> None:
        self._file = file
        # read1 hands over what has arrived; read would wait until a whole chunk has.
        self._read: Callable[[int], bytes | None] = getattr(file, "read1", file.read)
        self._on_damage = on_damage
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's first byte in the stream
        self._ended = False
        self.damages: list[Damage] = []
        self.next_index = 0
        self.header = self._read_header()

    @property
    def lost(self) -> int:
        """Frames that are known to be lost so far."""
        return sum(damage.lost for damage in self.damages)

    def __iter__(self) -> Iterator[Frame]:
        while self._fill(FRAME_HEADER_BYTES) or self._buffer:
            fields = unpack_frame_header(bytes(self._buffer[:FRAME_HEADER_BYTES]))
            if fields is None:
                self._skip_to_next_frame(0, "not a frame header", self._frame_begins_here())
                continue
            frame = self._read_frame(fields)
            if frame is not None:
                yield frame

    def _read_header(self) -> StreamHeader:
        self._fill(HEADER_BYTES)
        start = bytes(self._buffer[:HEADER_BYTES])
        if not start:
            raise InputError("empty: 0 bytes, expected an .lseg stream")
        first, second = start[:COPY_BYTES], start[COPY_BYTES:]
        if len(start) < HEADER_BYTES:
            if start[: len(MAGIC)] == MAGIC[: len(start)]:
                raise InputError(f"truncated: {len(start)} bytes, and an .lseg header alone has {HEADER_BYTES}")
            raise _not_an_lseg(start)
        good = [copy_is_good(first), copy_is_good(second)]
        if not any(good):
            raise _unreadable_header(first, second)
        header = unpack_copy(first if good[0] else second, self._read_codebook)
        self._report_copies("header", 0, (first, second), good)
        if header.scaling.centres:
            copies = self._codebook_copies(len(header.scaling.centres))
            self._report_copies("codebook", HEADER_BYTES, copies, [codebook_is_good(copy) for copy in copies])
        self._drop(header.size)
        return header

    def _read_codebook(self, count: int) -> tuple[float, ...]:
        """The centres behind the header, which is still in the buffer."""
        end = HEADER_BYTES + 2 * codebook_bytes(count)
        if not self._fill(end):
            raise InputError(
                f"truncated: {len(self._buffer)} bytes, and the header of this stream, with its codebook, has {end}"
            )
        for copy in self._codebook_copies(count):
            if codebook_is_good(copy):
                return unpack_codebook(copy)
        raise InputError("both copies of the stream's codebook are damaged; without one no symbol has a value")

    def _codebook_copies(self, count: int) -> tuple[bytes, bytes]:
        size = codebook_bytes(count)
        both = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + 2 * size])
        return both[:size], both[size:]

    def _report_copies(self, what: str, offset: int, copies: tuple[bytes, bytes], good: list[bool]) -> None:
        """Reports what is wrong with two copies of which one is used; `offset`: of the first in the stream."""
        first, second = copies
        for i, copy_good in enumerate(good):
            if not copy_good:
                reason = f"{what} copy {i + 1} of 2 is damaged; the other is used"
                self._report(Damage(offset + i * len(first), reason, None))
        if all(good) and first != second:
            reason = f"{what} copy 2 of 2 differs from the first; the first is used"
            self._report(Damage(offset + len(first), reason, None))

    def _read_frame(self, fields: FrameHeader) -> Frame | None:
        """The frame whose header is at the buffer's start, None when it is damaged (and passed over)."""
        cap = self.header.payload_cap
        if fields.length > cap:
            reason = f"payload claims {fields.length} bytes, cap is {cap}"
            self._skip_to_next_frame(FRAME_HEADER_BYTES, reason, True, fields.index)
            return None
        end = FRAME_HEADER_BYTES + fields.length
        if not self._fill(end):
            reason = f"cut: payload has {len(self._buffer) - FRAME_HEADER_BYTES} of {fields.length} bytes"
            self._skip_to_next_frame(FRAME_HEADER_BYTES, reason, True, fields.index)
            return None
        payload = bytes(self._buffer[FRAME_HEADER_BYTES:end])
        if zlib.crc32(payload) != fields.payload_crc:
            # Not to the payload's end at once: bytes may be missing from it, and the next frame begin inside.
            self._skip_to_next_frame(FRAME_HEADER_BYTES, "payload CRC does not fit", True, fields.index)
            return None
        offset = self._offset
        self._drop(end)
        if fields.index < self.next_index:
            reason = f"frame {fields.index} comes out of order, expected {self.next_index}; passed over"
            self._report(Damage(offset, reason, fields.index))
            return None
        self._report_gap(offset, fields.index)
        self.next_index = fields.index + 1
        return Frame(fields.index, fields.timestamp_us, payload)

    def _report_gap(self, offset: int, index: int) -> None:
        missing = index - self.next_index
        if missing > 0:
            span = f"frame {self.next_index} is" if missing == 1 else f"frames {self.next_index} to {index - 1} are"
            self._report(Damage(offset, f"{span} missing", self.next_index, lost=missing))

    def _skip_to_next_frame(self, start: int, reason: str, was_frame: bool, index: int | None = None) -> None:
        """Drops bytes up to the next good frame header at or behind `start` in the buffer, or up to the end.

        was_frame: whether a frame is known to have begun here; index: its number when its header could be read.
        """
        offset = self._offset
        found: FrameHeader | None = None
        # Behind this byte, or the same bad header would be found again.
        at = max(start, 1)
        while True:
            at = self._buffer.find(MARKER, at)
            if at >= 0:
                if self._fill(at + FRAME_HEADER_BYTES):
                    found = unpack_frame_header(bytes(self._buffer[at : at + FRAME_HEADER_BYTES]))
                    if found is not None:
                        break
                # Dropped one by one: what only looks like markers may never end, and must not pile up.
                self._drop(at + 1)
                at = 0
            else:
                # A marker may straddle what is here and what comes.
                keep = min(len(MARKER) - 1, len(self._buffer))
                self._drop(len(self._buffer) - keep)
                at = 0
                if not self._fill(keep + 1):
                    self._drop(len(self._buffer))
                    break
        if found is not None:
            self._drop(at)
        self._report_skipped(offset, reason, was_frame, index, found)

    def _report_skipped(
        self, offset: int, reason: str, was_frame: bool, index: int | None, found: FrameHeader | None
    ) -> None:
        expected = self.next_index
        reason = f"{reason}; {self._offset - offset} bytes passed over"
        if found is not None and found.index > expected and found.length <= self.header.payload_cap:
            # The next header tells how many frames the bytes in between held.
            missing = found.index - expected
            if missing > 1:
                reason += f", frames {expected} to {found.index - 1} lost"
            self._report(Damage(offset, reason, expected, lost=missing))
            self.next_index = found.index
        elif index is not None and index >= expected:
            self._report_gap(offset, index)
            self._report(Damage(offset, reason, index, lost=1))
            self.next_index = index + 1
        elif was_frame and found is None:
            self._report(Damage(offset, reason, expected, lost=1))
            self.next_index = expected + 1
        else:
            self._report(Damage(offset, reason, index))

    def _frame_begins_here(self) -> bool:
        return nearly_marker(bytes(self._buffer[: len(MARKER)]))

    def _report(self, damage: Damage) -> None:
        self.damages.append(damage)
        if self._on_damage is not None:
            self._on_damage(damage)

    def _fill(self, size: int) -> bool:
        """Reads until the buffer holds `size` bytes; False when the stream ends before that."""
        while len(self._buffer) < size and not self._ended:
            data = self._read(_CHUNK)
            if data is None:
                raise InputError("cannot read a stream from a non-blocking file")
            self._ended = not data
            self._buffer += data
        return len(self._buffer) >= size

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._offset += size


def _not_an_lseg(start: bytes) -> InputError:
    return InputError(
        f"not an .lseg stream: it looks like {looks_like(start)} (begins with {start[:8].hex(' ')})",
        hint="make one with: latentseg encode FRAMES -o OUT.lseg",
    )


def _unreadable_header(first: bytes, second: bytes) -> LatentsegError:
    if first[: len(MAGIC)] != MAGIC and second[: len(MAGIC)] != MAGIC:
        return _not_an_lseg(first + second)
    version = int.from_bytes(first[8:10], "little")
    if first[: len(MAGIC)] == MAGIC and version > VERSION and second[: len(MAGIC)] != MAGIC:
        # A later version may have a header of another size; its copies then do not lie where version 1 has them.
        return newer_version(version)
    return InputError("both copies of the stream header are damaged; without one no frame can be decoded")
