"""The facade: a bundle, and what can be done with it. Bytes in, masks or classes out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ..bitstream import Damage, StreamHeader
from ..errors import InputError, UsageError
from ..kernels.frames import FrameDecoder, FrameEncoder
from ..kernels.gpu.batch import check_gpu_stream
from .backends.base import usable_cores
from .bundle import Bundle, frame_size, load_bundle
from .losses import Losses, undecodable
from .pipeline import Stage, Streaming
from .placement import Placement
from .result import ClassifiedResult, EncodeSummary, Result
from .roles import Classifier, Compressor, Decompressor, Segmenter
from .run import (
    FrameStage,
    Run,
    Work,
    check_drop,
    check_limit,
    check_own_step,
    no_symbols,
    timed,
    to_classified,
    to_frame,
    to_result,
)
from .sinks.base import refuse_source
from .sinks.lseg import StreamSink
from .sources import FrameSource, Source, SourceFrame, StreamSource, open_frames, open_source

# On a GPU, where batches fill it and several are under way; a live source has batches of 1, one at a time.
GPU_BATCH, GPU_SLOTS = 8, 3

T = TypeVar("T")
R = TypeVar("R", Classifier, Compressor, Decompressor, Segmenter)


class Engine:
    """A bundle on a backend: segments or classifies, encodes and decodes streams.

    Models are loaded when first needed, and kept until `close`. One run at a time: another one stops it.

    Parameters
    ----------
    bundle: a Bundle, a shipped name, or a folder. backend, threads, provider, precision: see `Placement`; on "tensorrt"
    `threads` entropy-encode.
    queue_depth: frames that wait between two stages; memory grows with it.
    batch: frames that the backend "tensorrt" segments or compresses at once; None: 8, and 1 of a live source. The
    others take one.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        backend: str = "onnxruntime",
        threads: int | None = None,
        queue_depth: int = 2,
        *,
        provider: str | None = None,
        precision: str = "fp32",
        batch: int | None = None,
    ) -> None:
        if queue_depth < 1:
            raise UsageError(f"queue depth is {queue_depth}, expected at least 1")
        self.placement = Placement(backend, threads, provider, precision)
        if batch is not None and (batch < 1 or backend != "tensorrt"):
            raise UsageError(f"batches of {batch} on {backend}, expected at least 1, on tensorrt alone")
        self.batch = batch
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.queue_depth = queue_depth
        self._roles: dict[str, Any] = {}
        self._last: Run[Any] | None = None

    @property
    def damages(self) -> list[Damage]:
        """What the latest run passed over."""
        return self._last.damages if self._last else []

    @property
    def lost(self) -> int:
        """Frames that damage has cost the latest run; a caller ends with exit code 7 where it is not 0."""
        return self._last.lost if self._last else 0

    @property
    def dropped(self) -> int:
        """Live frames that the latest run dropped because they came too fast."""
        return self._last.dropped if self._last else 0

    def segment(
        self,
        source: str | os.PathLike[str] | Source[Any],
        *,
        kind: str | None = None,
        with_frames: bool = False,
        drop_late: bool | None = None,
        limit: int | None = None,
        step: float | None = None,
    ) -> Run[Result]:
        """Segment every frame of a source from its compressed bytes.

        An .lseg stream goes in as it is; anything else is compressed to bytes first, frame by frame. Damaged frames
        are passed over: see `damages` and `lost` afterwards.

        source: see `open_source`; or an open source, which is closed at the end.
        with_frames: give each result its RGB frame as well; for an .lseg stream the decompressor makes it.
        drop_late: drop the oldest waiting frame when frames come too fast; None: for live sources only.
        limit: stop after so many frames; what lies behind them is not read.
        step: of the quantisation of what is compressed, see `CodecSpec.scaling_at`; None: 1. A stream has its own.

        Raises
        ------
        InputError: the source is unreadable, or none of its frames is. ArtifactError: the stream is another codec's.
        UsageError: a step that the codec cannot take, or one for a stream. UsageError, BackendMissingError: see
        `open_source` and `open_backend`.
        """
        opened = open_source(source, kind) if isinstance(source, str | os.PathLike) else source
        with _closed_on_error(opened) as held:
            header, size, stages = self._to_bytes(opened, held, with_frames, drop_late, limit, step)
            damages: list[Damage] = []
            fused = self.placement.backend == "tensorrt"
            decompress = with_frames and isinstance(opened, StreamSource)
            if decompress or not fused:
                stages.append(timed("entropy_decode", _decode_stage(header, damages)))
            if decompress:
                stages.append(timed("decompress", self._frames_stage(size)))
            stages.append(
                self._fused_stage(header, size, opened.live, damages, held)
                if fused
                else timed("segment", self._label_stage(size))
            )
            return self._start(opened, size, stages, damages, to_result, drop_late, limit)

    def classify(
        self,
        source: str | os.PathLike[str] | Source[Any],
        *,
        kind: str | None = None,
        with_frames: bool = False,
        drop_late: bool | None = None,
        limit: int | None = None,
        step: float | None = None,
    ) -> Run[ClassifiedResult]:
        """Classify every frame of a source from its compressed bytes; parameters and damage as of `segment`.

        Raises as `segment`; UsageError on the backend "tensorrt", ArtifactError where the bundle has no classifier.
        """
        self.placement.model_file(self.bundle, Classifier.role)  # refused before a pipe is waited for
        opened = open_source(source, kind) if isinstance(source, str | os.PathLike) else source
        with _closed_on_error(opened) as held:
            header, size, stages = self._to_bytes(opened, held, with_frames, drop_late, limit, step)
            damages: list[Damage] = []
            stages.append(timed("entropy_decode", _decode_stage(header, damages)))
            if with_frames and isinstance(opened, StreamSource):
                stages.append(timed("decompress", self._frames_stage(size)))
            stages.append(timed("classify", self._class_stage(size)))
            return self._start(opened, size, stages, damages, partial(to_classified, size), drop_late, limit)

    def decode(self, source: str | os.PathLike[str] | StreamSource, *, limit: int | None = None) -> Run[SourceFrame]:
        """Decode an .lseg stream to RGB frames with the bundle's decompressor; `limit` as in `segment`.

        Raises as `segment`; ArtifactError where the bundle has no decompressor; InputError where the source is no
        .lseg stream.
        """
        self.bundle.model_path(Decompressor.role)  # refused before a pipe is waited for
        opened = open_source(source, "lseg") if isinstance(source, str | os.PathLike) else source
        assert isinstance(opened, StreamSource)
        with _closed_on_error(opened):
            check_limit(limit)
            damages: list[Damage] = []
            size = frame_size(opened.header, self.bundle.codec.stride)
            self.bundle.check_stream(opened.header)
            stages = [
                timed("entropy_decode", _decode_stage(opened.header, damages)),
                timed("decompress", self._frames_stage(size)),
            ]
            return self._start(opened, size, stages, damages, to_frame, None, limit)

    def encode(
        self,
        source: str | os.PathLike[str] | FrameSource,
        dest: str | os.PathLike[str],
        *,
        kind: str | None = None,
        overwrite: bool = False,
        drop_late: bool | None = None,
        limit: int | None = None,
        step: float = 1.0,
        key_interval: int = 1,
        on_frame: Callable[[Run[Any]], None] | None = None,
    ) -> EncodeSummary:
        """Compress every frame of a source to an .lseg stream.

        dest: a path, or "-" for stdout. drop_late, limit: as in `segment`. step: of the quantisation, see
        `CodecSpec.scaling_at`: a larger one costs fewer bits and more distortion.
        key_interval: 1: every frame stands alone. N > 1: frames may refer to the one before (coder "inter"), with a key
        frame, which stands alone, at least every N frames; 0: only the first one. A lost frame costs what follows it up
        to the next key frame.
        on_frame: called with the run after each frame, to show progress.
        The file is made when the first frame is there, and is readable to its last whole frame however it ends.

        Raises
        ------
        InputError: the source is unreadable. UsageError: `dest` exists and `overwrite` is false, or is the source; or
        a step or key interval that the codec cannot take. ArtifactError: a key interval other than 1 on "tensorrt".
        OutputError: writing failed (full disk).
        """
        if isinstance(source, str | os.PathLike):
            refuse_source(source, dest)
        # What cannot be is refused before a source is waited for.
        self._check_coder(self.bundle.header(1, 1, step=step, key_interval=key_interval))
        start = time.perf_counter()
        payload_bytes = 0
        with StreamSink(dest, overwrite) as sink:
            opened = open_frames(source, kind) if isinstance(source, str | os.PathLike) else source
            with _closed_on_error(opened) as held:
                check_limit(limit)
                header = self.bundle.header(*opened.size, opened.frame_rate, step, key_interval)
                stages = [self._compress_stage(opened, header, held, keep_rgb=False, key_interval=key_interval)]
                run = self._start(opened, opened.size, stages, [], lambda work: work, drop_late, limit)
            with run:
                for work in run:
                    if run.frames == 1:
                        sink.start(header)
                    sink.write(work.payload, work.timestamp_us)
                    payload_bytes += len(work.payload)
                    if on_frame is not None:
                        on_frame(run)
            return EncodeSummary(
                frames=sink.frames,
                lost=run.lost,
                dropped=run.dropped,
                bytes=sink.bytes_written,
                payload_bytes=payload_bytes,
                size=run.size,
                seconds=time.perf_counter() - start,
            )

    def close(self) -> None:
        """Stop the latest run and free the models; may be called twice."""
        if self._last is not None:
            self._last.close()
        for role in self._roles.values():
            role.close()
        self._roles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _role(self, kind: type[R]) -> R:
        if kind.role not in self._roles:
            self._roles[kind.role] = kind(self.bundle, self.placement)
        role: R = self._roles[kind.role]
        return role

    def _to_bytes(
        self,
        source: Source[Any],
        held: ExitStack,
        with_frames: bool,
        drop_late: bool | None,
        limit: int | None,
        step: float | None,
    ) -> tuple[StreamHeader, tuple[int, int], list[Stage]]:
        """How a source comes as bytes: the header, the frames' (H, W), and the stage that compresses, where it must."""
        check_limit(limit)
        stages: list[Stage] = []
        if isinstance(source, StreamSource):
            check_own_step(source.name, step)
            header = source.header
            check_drop(header, drop_late)
            self._check_coder(header)
        else:
            header = self.bundle.header(*source.size, source.frame_rate, 1.0 if step is None else step)
            stages.append(self._compress_stage(source, header, held, keep_rgb=with_frames))
        self.bundle.check_stream(header)
        return header, frame_size(header, self.bundle.codec.stride), stages

    def _check_coder(self, header: StreamHeader) -> None:
        if self.placement.backend == "tensorrt":
            check_gpu_stream(header)

    def _compress_stage(
        self, source: Source[Any], header: StreamHeader, held: ExitStack, *, keep_rgb: bool, key_interval: int = 1
    ) -> Stage:
        if self.placement.backend == "tensorrt":
            return self._fused_compress_stage(source, header, held, keep_rgb)
        compressor, encoder = self._role(Compressor), FrameEncoder(header, key_interval)

        def stage(work: Work) -> Work:
            assert work.rgb is not None
            try:
                payload = encoder.encode_latent(compressor.latents(work.rgb[None])[0])
            except InputError as error:
                raise no_symbols(work, error) from None
            return replace(work, payload=payload, rgb=work.rgb if keep_rgb else None)

        return timed("compress", stage)

    def _fused_compress_stage(
        self, source: Source[Any], header: StreamHeader, held: ExitStack, keep_rgb: bool
    ) -> Streaming:
        """From frames to payloads, network and float2int on the GPU. What it takes is freed at the end of the run."""
        from .tensorrt.sender import FusedCompressor

        batch, slots = (1, 1) if source.live else (GPU_BATCH, GPU_SLOTS)
        threads = self.placement.threads or usable_cores()
        self._stop_last()
        fused = FusedCompressor(self.bundle, header, source.size, self.batch or batch, slots, threads)
        held.callback(fused.close)

        def transform(works: Iterator[Work]) -> Iterator[Work]:
            with fused:
                yield from fused.run(works, keep_rgb=keep_rgb)

        return Streaming(transform)

    def _frames_stage(self, size: tuple[int, int]) -> FrameStage:
        decompressor = self._role(Decompressor)

        def stage(work: Work) -> Work:
            assert work.latents is not None
            return replace(work, rgb=decompressor.frames(work.latents, size)[0])

        return stage

    def _label_stage(self, size: tuple[int, int]) -> FrameStage:
        segmenter = self._role(Segmenter)

        def stage(work: Work) -> Work:
            assert work.latents is not None
            return replace(work, labels=segmenter.labels(work.latents, size)[0], latents=None)

        return stage

    def _class_stage(self, size: tuple[int, int]) -> FrameStage:
        classifier = self._role(Classifier)

        def stage(work: Work) -> Work:
            assert work.latents is not None
            return replace(work, probabilities=classifier.probabilities(work.latents, size)[0], latents=None)

        return stage

    def _fused_stage(
        self, header: StreamHeader, size: tuple[int, int], live: bool, damages: list[Damage], held: ExitStack
    ) -> Streaming:
        """From payloads to labels without a stop at the host. What it takes is freed at the end of the run."""
        from .tensorrt.runner import FusedSegmenter

        batch, slots = (1, 1) if live else (GPU_BATCH, GPU_SLOTS)
        self._stop_last()
        fused = FusedSegmenter(self.bundle, header, size, self.placement.precision, self.batch or batch, slots)
        held.callback(fused.close)

        def damaged(work: Work, error: InputError) -> None:
            damages.append(undecodable(work.index, error))

        def transform(works: Iterator[Work]) -> Iterator[Work]:
            with fused:
                for work in fused.run(works, damaged):
                    yield replace(work, latents=None)

        return Streaming(transform)

    def _stop_last(self) -> None:
        """One run at a time, and before a device's memory is asked for."""
        if self._last is not None:
            self._last.stop()

    def _start(
        self,
        source: Source[Any],
        size: tuple[int, int],
        stages: Sequence[Stage],
        damages: list[Damage],
        finish: Callable[[Work], T],
        drop_late: bool | None,
        limit: int | None,
    ) -> Run[T]:
        self._stop_last()
        run = Run(source, size, stages, damages, finish, self.queue_depth, drop_late, limit)
        self._last = run
        return run


def _decode_stage(header: StreamHeader, damages: list[Damage]) -> FrameStage:
    decoder, losses = FrameDecoder(header), Losses(header, damages)

    def stage(work: Work) -> Work | None:
        try:
            latent = decoder.decode_latent(work.payload, work.index)
        except InputError as error:
            losses.add(work.payload, work.index, error)
            return None
        losses.decoded(work.index)
        return replace(work, latents=latent[None])

    return stage


@contextmanager
def _closed_on_error(source: Source[Any]) -> Iterator[ExitStack]:
    """Closes the source, and what is put on the stack, where no run comes of them."""
    with ExitStack() as held:
        held.callback(source.close)
        yield held
        held.pop_all()
