"""Scores of trained weights: rate and distortion of a codec, segmentation quality of a segmenter.

Every bpp but `rate_model_bpp` is counted from real bytes: the whole stream's, framing included.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..bitstream import Scaling, StreamHeader, Writer
from ..bitstream.header import DEFAULT_CODER, tile_for
from ..errors import InputError
from ..kernels import entropy
from . import metrics
from .augment import to_float
from .data import IGNORE, ClassSet
from .received import Encoder, check_steps, pad_to, requantise

Frame = NDArray[np.uint8]


def to_frame(x: Tensor, height: int, width: int) -> Frame:
    """(1, 3, H, W) in [0, 1] to RGB uint8, rounded, cropped to height x width."""
    rgb = (x[0, :, :height, :width].clamp(0, 1) * 255.0 + 0.5).to(torch.uint8)
    return np.ascontiguousarray(rgb.permute(1, 2, 0).numpy())


def stream_header(
    codec: nn.Module, latent_shape: Sequence[int], size: tuple[int, int], coder: str, step: float = 1.0
) -> StreamHeader:
    """Header of a stream of one codec's frames, unnamed (it is only measured). step: of the quantisation.

    Raises UsageError for a step that the codec cannot take.
    """
    check_steps(codec, (step, step))
    mode, lo, hi, *centres = codec.scaling  # type: ignore[misc]
    c, h, w = latent_shape
    return StreamHeader(
        codec_id=bytes(32),
        latent_shape=(c, h, w),
        bits=codec.bits,  # type: ignore[arg-type]
        scaling=Scaling(mode, step * lo, step * hi, *centres),  # 0 where the range is not fixed
        source_size=size,
        frame_rate=(0, 1),
        coder=coder,  # type: ignore[arg-type]
        tile=tile_for(coder, codec.tile),  # type: ignore[arg-type]
    )


def latent(codec: nn.Module, frame: Frame, device: torch.device | str = "cpu") -> Tensor:
    """The float latent (1, C, h, w) of a frame RGB uint8 (H, W, 3), before float2int. device: where the codec is."""
    x = to_float(frame)[None].to(device)
    z: Tensor = codec.compress(pad_to(x, codec.stride))  # type: ignore[operator, arg-type]
    return z


def _coded(codec: nn.Module, frame: Frame, coder: str, step: float = 1.0) -> tuple[StreamHeader, bytes, int]:
    """A frame's stream header and payload, and the payload's size with its framing, in bytes."""
    return coded_latent(codec, latent(codec, frame)[0], frame.shape[:2], coder, step)


def coded_latent(
    codec: nn.Module, z: Tensor, size: tuple[int, int], coder: str, step: float = 1.0
) -> tuple[StreamHeader, bytes, int]:
    """Stream header, payload, and the payload's bytes with its framing, of a frame (height, width) with latent z."""
    header = stream_header(codec, z.shape, size, coder, step)
    payload = entropy.encode_latent(np.ascontiguousarray(z.numpy()), header)
    return header, payload, Writer(io.BytesIO(), header).write(payload)


def sheets(frames: Sequence[Frame], side: int = 512) -> Iterator[Frame]:
    """Frames of one size laid side by side, as many as fit into side x side; large ones as they are.

    Small images are measured so: each as a frame of its own, framing would be much of the rate. A last row that is not
    full is left out, unless it is the only one.
    """
    height, width = frames[0].shape[:2]
    columns, rows = max(1, side // width), max(1, side // height)
    for start in range(0, len(frames), columns * rows):
        chunk = frames[start : start + columns * rows]
        across = min(columns, len(chunk))
        down = len(chunk) // across
        grid = np.stack(chunk[: across * down]).reshape(down, across, height, width, 3)
        yield grid.transpose(0, 2, 1, 3, 4).reshape(down * height, across * width, 3)


@torch.no_grad()
def coded_bpp(codec: nn.Module, frames: Sequence[Frame], coder: str = DEFAULT_CODER) -> float:
    """Mean bits a pixel of frames RGB uint8 (H, W, 3) as the codec and the coder write them, framing included."""
    return float(np.mean([metrics.bpp(_coded(codec, f, coder)[2], f.shape[0] * f.shape[1]) for f in frames]))


@torch.no_grad()
def evaluate_codec(
    codec: nn.Module,
    frames: Sequence[Frame],
    *,
    coder: str = DEFAULT_CODER,
    step: float = 1.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Rate and distortion of a codec over frames RGB uint8 (H, W, 3). step: of the quantisation.

    Returns means over frames of PSNR (dB) and SSIM of the decoded 8-bit frames, bpp and compression factor (against
    24-bit RGB) of the payloads with their framing, and `rate_model_bpp` where the codec has a rate model. A PSNR is
    None where some frame came out without any error.
    """
    codec.eval()
    rows: dict[str, list[float]] = {"psnr": [], "ssim": [], "bpp": [], "rate_model_bpp": []}
    for frame in tqdm(frames, unit="frame", disable=not progress):
        height, width = frame.shape[:2]
        header, payload, size = _coded(codec, frame, coder, step)
        received = torch.from_numpy(entropy.decode_latent(payload, header))[None]
        decoded = to_frame(codec.decompress(received), height, width)  # type: ignore[operator]
        rows["psnr"].append(metrics.psnr(frame, decoded))
        rows["ssim"].append(metrics.ssim(frame, decoded))
        rows["bpp"].append(metrics.bpp(size, height * width))
        if hasattr(codec, "rate_model"):
            bits = float(codec.rate_model(received / step))  # type: ignore[operator]
            rows["rate_model_bpp"].append(bits / (height * width))
    result: dict[str, Any] = {name: float(np.mean(values)) for name, values in rows.items() if values}
    if math.isinf(result["psnr"]):
        result["psnr"] = None
    result["compression_factor"] = 24.0 / result["bpp"]
    return {"frames": len(frames), "coder": coder, "step": step, **result}


def coded_bytes(codec: nn.Module, coder: str = DEFAULT_CODER, step: float = 1.0) -> Callable[[Frame], int]:
    """A function that gives a frame's bytes as the codec and the coder write them, framing included."""
    codec.eval()

    @torch.no_grad()
    def size(frame: Frame) -> int:
        return _coded(codec, frame, coder, step)[2]

    return size


def decoded_by(codec: nn.Module, step: float = 1.0) -> Callable[[Frame], Frame]:
    """A function that sends a frame through a codec: compress, quantise with this step, decompress."""
    codec.eval()
    check_steps(codec, (step, step))

    @torch.no_grad()
    def transform(frame: Frame) -> Frame:
        height, width = frame.shape[:2]
        received = requantise(latent(codec, frame).float(), codec.bits, codec.scaling, step)  # type: ignore[arg-type]
        return to_frame(codec.decompress(received), height, width)  # type: ignore[operator]

    return transform


@torch.no_grad()
def predict(segmenter: nn.Module, encoder: Encoder, frame: Frame, step: float = 1.0) -> NDArray[np.uint8]:
    """Label map uint8 (H, W) of one frame. step: of the encoder's quantisation."""
    height, width = frame.shape[:2]
    stride = encoder.codec.stride if encoder.codec is not None else 8
    x = pad_to(to_float(frame)[None], stride)  # type: ignore[arg-type]
    out = segmenter(encoder(x, step))
    logits = out[0] if isinstance(out, tuple) else out
    full = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=bool(segmenter.align_corners))
    return full.argmax(1)[0, :height, :width].to(torch.uint8).numpy()


def evaluate_segmenter(
    segmenter: nn.Module,
    pairs: Iterator[tuple[Frame, NDArray[np.uint8]]],
    classes: ClassSet,
    *,
    codec: nn.Module | None = None,
    step: float = 1.0,
    before: Callable[[Frame], Frame] | None = None,
    sent: Callable[[Frame], int] | None = None,
    total: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Quality of a segmenter over (frame uint8 (H, W, 3), label uint8 (H, W)) pairs, at full resolution.

    codec: the frozen codec of a latent segmenter. step: of its quantisation. before: what is done to a frame first (a
    codec's round trip, JPEG). sent: the bytes that a frame is sent as, which give "bpp", the mean over frames.
    Returns mIoU, per-class IoU, macro Dice, per-class Dice and pixel accuracy, all from one pooled confusion matrix.
    """
    segmenter.eval()
    if codec is not None:
        check_steps(codec, (step, step))
    encoder = Encoder(codec)
    matrix = metrics.ConfusionMatrix(len(classes.names), ignore=IGNORE)
    count, bpp = 0, []
    for frame, label in tqdm(pairs, total=total, unit="frame", disable=not progress):
        matrix.update(label, predict(segmenter, encoder, before(frame) if before else frame, step))
        if sent is not None:
            bpp.append(metrics.bpp(sent(frame), frame.shape[0] * frame.shape[1]))
        count += 1
    if math.isnan(matrix.miou()):
        raise InputError("no pixel of any label has a class", hint="check the labels, and --layout")
    rate = {"bpp": float(np.mean(bpp))} if bpp else {}
    return {"frames": count, **rate, **matrix.to_dict(classes.names)}
