"""Video through DALI: NVDEC on a GPU; on a CPU the few codecs that DALI decodes there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....bitstream import Damage
from ....errors import InputError
from ...geometry import crop
from ..base import FrameSource, SourceFrame
from ..video import VideoSource
from .batches import BatchSource, FrameBatch, check_stride, padded, where
from .pipe import DaliError, Pipe, load_dali, pad, ticket

# What DALI's reader says that it decodes; a GPU may decode fewer, which its first frames tell.
_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
_GPU_CODECS = _CPU_CODECS | {"av1", "mpeg4", "h264", "hevc"}
_END_TOLERANCE_S = 0.2  # announced lengths are rounded
_PYAV = "read it with PyAV instead: kind='video'"


class DaliVideo(FrameSource, BatchSource[FrameBatch]):
    """A video file as frames in the compressor's layout.

    PyAV opens the file first, for its codec, size, rate and announced length; DALI then decodes its first batch, so
    that a source that opens can be read. DALI does not pass over packets that do not decode: they are an InputError. A
    video that ends before its announced length is reported in `damages`.

    Shards are runs of whole batches. Indices and times are those of the whole video.

    Parameters: see `BatchSource` and, for stride, `DaliImages`.

    Raises
    ------
    InputError: missing, no video, of a codec that the device does not decode, or, while iterating, damaged.
    UsageError: numbers out of range. BackendMissingError: no DALI, no PyAV, or no such GPU.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch: int = 8,
        *,
        device: int | None = None,
        threads: int | None = None,
        shard: int = 0,
        shards: int = 1,
        stride: int = 1,
        depth: int = 2,
    ) -> None:
        FrameSource.__init__(self, str(path))
        BatchSource.__init__(self, batch, device, threads, shard, shards, depth)
        check_stride(stride)
        load_dali()
        if not Path(path).is_file():
            raise InputError(f"no such file: {path}", hint="check the path")
        self._look(path)
        self._stride, self._padded = stride, padded(self.size, stride)
        # DALI keeps the index of a file's frames under its name for as long as the process lives, and takes a file that
        # has been replaced for the old one. So each source has a name of its own for it.
        self._alias = tempfile.TemporaryDirectory(prefix="latentseg-dali-")
        link = Path(self._alias.name) / Path(path).name
        link.symlink_to(Path(path).resolve())
        self._first: tuple[FrameBatch, Iterator[FrameBatch]] | None = None
        try:
            self._pipe, self._range = self._open_pipe(str(link))
            if self._announced is not None:
                first, end = (min(n * batch, self._announced) for n in (self._range.start, self._range.stop))
                self.length = end - first
            if self._range:
                rest = self._begin(None)
                self._first = (next(rest), rest)
        except BaseException:
            self._alias.cleanup()
            raise

    def batches(self, stream: int | None = None) -> Iterator[FrameBatch]:
        if stream is None and self._first is not None:
            first, rest = self._first
            self._first = None
            yield first
            del first
            yield from rest
            return
        self._first = None
        yield from self._begin(stream)

    def __iter__(self) -> Iterator[SourceFrame]:
        for batch in self.batches():
            frames = batch.host() if batch.size == self.size else crop(batch.host(), self.size)
            for index, time, rgb in zip(batch.indices.tolist(), batch.timestamps_us.tolist(), frames, strict=True):
                yield SourceFrame(index, time, rgb)

    def close(self) -> None:
        self._first = None
        self._pipe.close()
        self._alias.cleanup()

    def _look(self, path: str | os.PathLike[str]) -> None:
        with VideoSource(os.fspath(path)) as video:
            self.size, self.frame_rate, self._announced = video.size, video.frame_rate, video.length
            self._codec = str(video._stream.codec_context.codec.canonical_name)
        known = _CPU_CODECS if self.device is None else _GPU_CODECS
        if self._codec not in known:
            raise self._refused(f"it decodes {', '.join(sorted(known))} there")

    def _refused(self, why: str) -> InputError:
        return InputError(f"{self.name}: DALI does not decode {self._codec} on {where(self.device)}: {why}", hint=_PYAV)

    def _open_pipe(self, file: str) -> tuple[Pipe[int], range]:
        """The pipeline of this source's shard, and the numbers of its batches in the whole video."""
        reader = "video"

        def opened(shard: int, shards: int) -> Pipe[int]:
            def define(tickets: Any) -> Sequence[Any]:
                frames, numbers, seconds = load_dali().fn.experimental.readers.video(
                    device="cpu" if self.device is None else "gpu",
                    name=reader,
                    filenames=[file],
                    sequence_length=self.batch,
                    pad_mode="constant",  # "none" would leave out a last sequence that is not full
                    enable_frame_num="sequence",
                    enable_timestamps=True,
                    shard_id=shard,
                    num_shards=shards,
                    stick_to_shard=True,
                )
                return pad(frames, self.size, self._stride, axis=1), numbers, seconds, tickets

            return Pipe(define, 1, self.device, self.threads, self.depth, "int64")

        try:
            pipe = opened(0, 1)
            total = pipe.reader_size(reader)
            own = range(self.shard * total // self.shards, (self.shard + 1) * total // self.shards)
            if self.shards > 1 and own:
                # DALI divides in this way too, but refuses more shards than it has sequences.
                pipe.close()
                pipe = opened(self.shard, self.shards) if total >= self.shards else opened(own.start, total)
        except InputError as error:
            raise self._refused(str(error)) from error
        self._ends = own.stop == total
        return pipe, own

    def _begin(self, stream: int | None) -> Iterator[FrameBatch]:
        self.damages.clear()
        end = self._range.start * self.batch
        number = self._range.start
        try:
            for number, outputs in self._pipe.run(map(ticket, self._range), stream):
                found = self._batch(number, outputs)
                end += len(found)
                yield found
                del found, outputs
        except DaliError as error:
            first = error.items[0] * self.batch
            raise InputError(
                f"{self.name}: DALI does not decode {self._codec} frames {first} to {first + self.batch - 1} on "
                f"{where(self.device)}: {error}",
                hint=f"{_PYAV}; it passes over damaged frames",
            ) from error
        if self._ends:
            self._report_early_end(end)

    def _batch(self, number: int, outputs: Sequence[Any]) -> FrameBatch:
        tensor = outputs[0][0]
        numbers, seconds = (np.asarray(output[0].as_cpu()) for output in outputs[1:3])
        count = int((numbers >= 0).sum())
        indices = np.arange(number * self.batch, number * self.batch + count)
        shape = (self.batch, *self._padded, 3)
        if tuple(tensor.shape()) != shape or count == 0 or not np.array_equal(numbers[:count], indices):
            raise InputError(
                f"{self.name}: DALI gave {list(tensor.shape())}, frames {numbers.tolist()}, expected {list(shape)}, "
                f"frames from {number * self.batch}",
                hint=_PYAV,
            )
        times = np.rint(seconds[:count] * 1e6).astype(np.int64)
        return FrameBatch(tensor, indices, times, self._padded)

    def _report_early_end(self, found: int) -> None:
        """DALI takes what a cut file has for all of it: compare with the length that the file announces."""
        announced, rate = self._announced, self.frame_rate[0] / self.frame_rate[1] or 25.0
        if announced is not None and announced - found > max(2.0, _END_TOLERANCE_S * rate):
            reason = f"the video ends after {found} frames, and announces {announced}"
            self.damages.append(Damage(0, reason, None, lost=announced - found))
