"""Coded frames of .lseg files through DALI, planned for the decoding kernel and copied to the device ahead of time.

What goes to the device is `plan_batch`'s one run of bytes, and not the payloads alone: the kernel needs the lanes'
places beside them, the host works these out, and so one copy a batch brings all that a launch takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ....bitstream import Damage, Frame, StreamHeader
from ....errors import InputError, LatentsegError
from ....kernels.gpu.batch import Batch, check_gpu_stream, plan_batch
from ...pipeline import Pipeline
from ..base import Source
from ..stream import StreamSource
from .batches import BatchSource, PayloadBatch, chunks
from .pipe import DaliError, Fed, Pipe

_Read = tuple[int, Frame]
_Planned = tuple[Batch, list[_Read]]


class DaliPayloads(Source[Frame], BatchSource[PayloadBatch]):
    """The frames of .lseg files of one codec and size, file after file; batches run across their borders.

    Reading and planning go on in threads of their own. What is damaged is passed over and reported in `damages`, as
    `StreamSource` and `Engine` do it, with the file's name where there are several. Shards take whole files.

    `header` is the first file's. Parameters: see `BatchSource`; DALI itself needs one thread.

    Raises
    ------
    InputError: missing, no .lseg, files that differ, or, while iterating, not one readable frame in any.
    ArtifactError: a coder that the GPU does not decode. UsageError: numbers out of range. BackendMissingError: no DALI,
    or no such GPU.
    """

    header: StreamHeader

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        batch: int = 8,
        *,
        device: int | None = None,
        shard: int = 0,
        shards: int = 1,
        depth: int = 2,
    ) -> None:
        single = isinstance(source, str | os.PathLike)
        self.files = [Path(source)] if single else [Path(path) for path in source]  # type: ignore[arg-type,union-attr]
        Source.__init__(self, str(self.files[0]) if len(self.files) == 1 else f"{len(self.files)} .lseg files")
        BatchSource.__init__(self, batch, device, 1, shard, shards, depth)
        if not self.files:
            raise InputError("no .lseg files: an empty sequence", hint="give a file, or several")
        for number, file in enumerate(self.files):
            with StreamSource.open(file) as stream:
                self._check_header(stream, number)
        self.size, self.frame_rate = self.header.source_size, self.header.frame_rate
        self._own = range(shard, len(self.files), shards)

        def define(runs: Any) -> list[Any]:
            return [runs if device is None else runs.gpu()]

        self._pipe: Pipe[_Planned] = Pipe(define, 1, device, self.threads, depth)

    def batches(self, stream: int | None = None) -> Iterator[PayloadBatch]:
        # A list of this iteration: an older one's threads may still be reading.
        self.damages = damages = list[Damage]()
        found = 0
        plans: Pipeline[_Planned]
        with Pipeline(
            chunks(self._frames(damages), self.batch), [lambda chunk: self._plan(chunk, damages)], self.depth
        ) as plans:
            try:
                for (plan, frames), outputs in self._pipe.run(map(_fed, plans), stream):
                    found += len(frames)
                    files = np.array([number for number, _ in frames], np.int64)
                    yield PayloadBatch(outputs[0][0], plan, tuple(frame for _, frame in frames), files)
            except DaliError as error:
                raise InputError(f"{self.name}: DALI fails to copy a batch: {error}") from error
        if found == 0 and self._own:
            lost = f"; {damages[0].reason}" if damages else ""
            raise InputError(f"{self.name}: no readable frame{lost}", hint="encode the source again")

    def __iter__(self) -> Iterator[Frame]:
        for batch in self.batches():
            yield from batch.frames

    def close(self) -> None:
        self._pipe.close()

    def _check_header(self, stream: StreamSource, number: int) -> None:
        try:
            check_gpu_stream(stream.header)
        except LatentsegError as error:
            raise type(error)(f"{stream.name}: {error}", hint=error.hint) from error
        if number == 0:
            self.header = stream.header
        elif replace(stream.header, frame_rate=self.header.frame_rate) != self.header:
            raise InputError(
                f"{stream.name} is of another codec, size or tile than {self.files[0]}",
                hint="see both with: latentseg inspect; read files that differ one after the other",
            )

    def _frames(self, damages: list[Damage]) -> Iterator[_Read]:
        for number in self._own:
            with StreamSource.open(self.files[number]) as stream:
                try:
                    for frame in stream:
                        yield number, frame
                except InputError as error:  # not one frame in it
                    damages.append(self._named(number, Damage(0, str(error), None)))
                damages += [self._named(number, damage) for damage in stream.damages]

    def _plan(self, chunk: list[_Read], damages: list[Damage]) -> _Planned | None:
        """The chunk's plan; without the frames that cannot be planned, which are reported; None where none is left."""
        try:
            return plan_batch([frame.payload for _, frame in chunk], self.header), chunk
        except InputError:
            good = [read for read in chunk if self._plannable(*read, damages)]
            return (plan_batch([frame.payload for _, frame in good], self.header), good) if good else None

    def _plannable(self, number: int, frame: Frame, damages: list[Damage]) -> bool:
        try:
            plan_batch([frame.payload], self.header)
        except InputError as error:
            # The container's CRC fits and yet the coder cannot read it: damage that came before the writer.
            damage = Damage(-1, f"frame {frame.index} does not decode: {error}", frame.index, lost=1)
            damages.append(self._named(number, damage))
            return False
        return True

    def _named(self, number: int, damage: Damage) -> Damage:
        return replace(damage, reason=f"{self.files[number]}: {damage.reason}") if len(self.files) > 1 else damage


def _fed(planned: _Planned) -> Fed[_Planned]:
    return planned, [planned[0].data]
