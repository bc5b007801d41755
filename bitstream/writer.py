"""Writes .lseg streams, to files and to pipes."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from ..errors import InputError
from .frames import FRAME_HEADER_BYTES, MAX_FRAMES, FrameHeader, pack_frame_header
from .header import StreamHeader, pack_header
from .reader import Reader


class Writer:
    """Writes the header at once, then a frame a call; never seeks, and flushes each time.

    Whatever was written so far is a valid stream, so a run that is interrupted loses nothing. The file stays open: it
    belongs to the caller. OSError (full disk, closed pipe) passes through.

    file: open for binary writing.
    header: what all frames share.
    """

    def __init__(self, file: BinaryIO, header: StreamHeader) -> None:
        self._start(file, header, frames=0)
        self._put(pack_header(header))

    @classmethod
    def append(cls, file: BinaryIO) -> Writer:
        """A writer that goes on behind the last frame of an existing stream, with its header.

        file: open for reading and writing ("r+b"), at its start. A cut last frame stays where it is; readers report
        it and find what follows. Raises InputError when there is no readable header.
        """
        reader = Reader(file)
        for _ in reader:
            pass
        writer = cls.__new__(cls)
        # A lost frame keeps its number.
        writer._start(file, reader.header, frames=reader.next_index)
        file.seek(0, 2)
        return writer

    def _start(self, file: BinaryIO, header: StreamHeader, frames: int) -> None:
        self._file = file
        self.header = header
        self.frames = frames
        self.bytes_written = 0

    def write(self, payload: bytes, timestamp_us: int = 0) -> int:
        """Writes one frame; returns its bytes, framing included.

        Raises InputError for a payload above the cap that the header sets, or a time outside 64 bits.
        """
        if len(payload) > self.header.payload_cap:
            raise InputError(
                f"frame {self.frames}: payload of {len(payload)} bytes, expected at most {self.header.payload_cap}"
                f" for a latent of {self.header.latent_shape}"
            )
        if self.frames >= MAX_FRAMES:
            raise InputError(f"stream is full: {MAX_FRAMES} frames", hint="start a new file")
        if not -(1 << 63) <= timestamp_us < 1 << 63:
            raise InputError(f"timestamp of {timestamp_us} us does not fit in 64 bits")
        fields = FrameHeader(self.frames, timestamp_us, len(payload), zlib.crc32(payload))
        self._put(pack_frame_header(fields) + payload)
        self.frames += 1
        return FRAME_HEADER_BYTES + len(payload)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            # A raw, unbuffered file may take less than it is given.
            taken = self._file.write(view)
            if taken is None:
                raise BlockingIOError("cannot write a stream to a non-blocking file")
            view = view[taken:]
        self._file.flush()
        self.bytes_written += len(data)
