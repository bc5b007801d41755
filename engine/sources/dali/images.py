"""JPEGs through DALI, the baseline's way into the RGB segmenter: nvJPEG on a GPU, libjpeg-turbo on a CPU."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....bitstream import Damage
from ....errors import InputError, UsageError
from ...geometry import crop
from ...pipeline import Pipeline
from ..base import NOMINAL_FRAME_US, FrameSource, SourceFrame
from ..images import files_in
from .batches import BatchSource, FrameBatch, check_stride, chunks, padded
from .jpeg import jpeg_size
from .pipe import DaliError, Fed, Pipe, load_dali, pad

_SUFFIXES = frozenset({".jpg", ".jpeg"})


@dataclass(frozen=True)
class _Jpeg:
    index: int
    name: str
    data: npt.NDArray[np.uint8]


class DaliImages(FrameSource, BatchSource[FrameBatch]):
    """JPEGs as frames: a file, every JPEG directly in a folder in natural order, or a sequence of paths or of bytes.

    Files are read ahead in a thread of their own. One that cannot be read or decoded is passed over and reported in
    `damages` with its name; its batch is then shorter. EXIF rotation is not applied (nor is it by `ImageSource`). On
    the CPU the pixels are those of Pillow.

    Parameters (the others: see `BatchSource`)
    ----------
    stride: pads frames at the bottom and the right to multiples of it, as `geometry.pad_to_stride` does.
    hardware_share: of a GPU's work, the part for its JPEG engines where it has any; the rest goes to its other cores.
    fancy_upsampling: on a GPU, chroma is interpolated as libjpeg does it, and not repeated.

    Raises
    ------
    InputError: missing, no JPEG in it, or, while iterating, an image of another size, or none that can be read.
    UsageError: numbers out of range. BackendMissingError: no DALI, or no such GPU.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | bytes],
        batch: int = 8,
        *,
        device: int | None = None,
        threads: int | None = None,
        shard: int = 0,
        shards: int = 1,
        stride: int = 1,
        hardware_share: float = 0.65,
        fancy_upsampling: bool = True,
        depth: int = 2,
    ) -> None:
        FrameSource.__init__(self, _name(source))
        BatchSource.__init__(self, batch, device, threads, shard, shards, depth)
        check_stride(stride)
        if not 0.0 <= hardware_share <= 1.0:
            raise UsageError(f"hardware_share is {hardware_share}, expected 0 to 1")
        load_dali()
        self._items = _listed(source)
        self.size = self._first_size()
        self._own = range(shard, len(self._items), shards)
        self.length = len(self._own)
        self._padded = padded(self.size, stride)
        height, width = self.size

        def define(jpegs: Any) -> list[Any]:
            dali = load_dali()
            only_gpu = {
                "hw_decoder_load": hardware_share,
                "preallocate_height_hint": height,
                "preallocate_width_hint": width,
                "jpeg_fancy_upsampling": fancy_upsampling,
            }
            frames = dali.fn.decoders.image(
                jpegs,
                device="cpu" if device is None else "mixed",
                output_type=dali.types.RGB,
                adjust_orientation=False,
                **({} if device is None else only_gpu),
            )
            return [pad(frames, self.size, stride, axis=0)]

        self._define = define
        self._pipe = self._open_pipe(batch)

    def batches(self, stream: int | None = None) -> Iterator[FrameBatch]:
        # A list of this iteration: an older one's thread may still be reading.
        self.damages = damages = list[Damage]()
        found = 0
        jpegs: Pipeline[_Jpeg]
        with Pipeline(self._own, [lambda index: self._read(index, damages)], self.batch * self.depth) as jpegs:
            left: Iterator[list[_Jpeg]] = chunks(jpegs, self.batch)
            while True:
                try:
                    for chunk, outputs in self._pipe.run(map(_fed, left), stream):
                        found += len(chunk)
                        yield self._batch(chunk, outputs)
                    break
                except DaliError as error:
                    first, *behind = error.items
                    redone = chain(self._decodable(first, str(error), damages), behind)
                    left = chain(redone, left if error.ending is None else _raising(error.ending))
        if found == 0 and damages:
            raise InputError(f"{self.name}: none of {len(damages)} images could be read; {damages[0].reason}")

    def __iter__(self) -> Iterator[SourceFrame]:
        for batch in self.batches():
            frames = batch.host() if batch.size == self.size else crop(batch.host(), self.size)
            for index, time, rgb in zip(batch.indices.tolist(), batch.timestamps_us.tolist(), frames, strict=True):
                yield SourceFrame(index, time, rgb)

    def close(self) -> None:
        self._pipe.close()

    def _batch(self, chunk: list[_Jpeg], outputs: Sequence[Any]) -> FrameBatch:
        indices = np.array([jpeg.index for jpeg in chunk], np.int64)
        return FrameBatch(outputs[0].as_tensor(), indices, indices * NOMINAL_FRAME_US, self._padded)

    def _open_pipe(self, batch: int) -> Pipe[list[_Jpeg]]:
        return Pipe(self._define, batch, self.device, self.threads, self.depth)

    def _first_size(self) -> tuple[int, int]:
        """Of the first that can be read; it need not be this shard's, so that all shards agree."""
        reasons = []
        for index in range(len(self._items)):
            try:
                return jpeg_size(self._bytes(index))
            except InputError as error:
                reasons.append(f"{self._label(index)}: {error}")
        raise InputError(
            f"{self.name}: none of {len(reasons)} images could be read; {reasons[0]}",
            hint="give JPEGs, or read other images without DALI: kind='images'",
        )

    def _read(self, index: int, damages: list[Damage]) -> _Jpeg | None:
        """One file or buffer, checked; None, and reported, where it is damaged. In the reading thread."""
        try:
            data = self._bytes(index)
            size = jpeg_size(data)
        except InputError as error:
            damages.append(_damage(index, self._label(index), error))
            return None
        if size != self.size:
            raise InputError(
                f"{self._label(index)} is {size[0]}x{size[1]}, expected {self.size[0]}x{self.size[1]} as the first",
                hint="a stream has one size: put images of each size in a folder of their own",
            )
        return _Jpeg(index, self._label(index), np.frombuffer(data, np.uint8))

    def _bytes(self, index: int) -> bytes:
        item = self._items[index]
        if isinstance(item, bytes):
            return item
        try:
            return item.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read it: {error.strerror or error}") from error

    def _label(self, index: int) -> str:
        item = self._items[index]
        return f"image {index}" if isinstance(item, bytes) else str(item)

    def _decodable(self, chunk: list[_Jpeg], why: str, damages: list[Damage]) -> list[list[_Jpeg]]:
        """The images of a batch that failed which decode on their own, as a batch; the others are reported.

        DALI does not say which of them it was.
        """
        good = []
        for jpeg in chunk:
            single = self._open_pipe(1)
            try:
                deque(single.run([_fed([jpeg])]), maxlen=0)
                good.append(jpeg)
            except DaliError as error:
                damages.append(_damage(jpeg.index, jpeg.name, error))
            finally:
                single.close()
        if len(good) == len(chunk):
            raise InputError(
                f"{self.name}: DALI fails on a batch of {len(chunk)} images, and on none of them alone: {why}"
            )
        return [good] if good else []


def _damage(index: int, name: str, error: Exception) -> Damage:
    return Damage(0, f"{name}: {error}", index, lost=1)


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield  # an iterator, so that the error comes in its place


def _fed(chunk: list[_Jpeg]) -> Fed[list[_Jpeg]]:
    return chunk, [jpeg.data for jpeg in chunk]


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"{len(source)} images"


def _listed(source: Any) -> list[Path | bytes]:
    if not isinstance(source, str | os.PathLike):
        items = [item if isinstance(item, bytes) else Path(item) for item in source]
    elif Path(source).is_dir():
        items = list(_jpegs_in(Path(source)))
    else:
        items = [Path(source)]
    if not items:
        raise InputError("no images: an empty sequence", hint="give a folder, files or bytes")
    for item in items:
        if isinstance(item, Path) and not item.is_file():
            raise InputError(f"no such file: {item}", hint="check the path")
    return items


def _jpegs_in(folder: Path) -> list[Path]:
    files, entries = files_in(folder, _SUFFIXES)
    if not files:
        found = ", ".join(sorted({p.suffix or p.name for p in entries})[:5]) or "nothing"
        raise InputError(
            f"{folder} holds no JPEGs (found {found}), expected {', '.join(sorted(_SUFFIXES))}",
            hint="read other images without DALI: kind='images'",
        )
    return files
