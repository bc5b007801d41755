"""What a segmenter is fed on real frames: exactly what the receiver of a stream would feed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engine.backends import open_backend
from ...engine.bundle import Bundle
from ...engine.geometry import pad_to_stride
from ...kernels import entropy


def model_inputs(
    bundle: Bundle, role: str, frames: Sequence[npt.NDArray[np.uint8]], step: Callable[[], None]
) -> list[npt.NDArray[Any]]:
    """One input of batch 1 for each frame uint8 (H, W, 3).

    segmenter: the latent float32 (1, C, h, w) after compressor, float2int, entropy coder and back. rgb_segmenter: the
    frame, padded to the codec's stride.
    """
    stride = bundle.codec.stride
    if role == "rgb_segmenter":
        padded = []
        for frame in frames:
            padded.append(pad_to_stride(frame[None], stride))
            step()
        return padded
    received: list[npt.NDArray[Any]] = []
    with open_backend(bundle.model_path("compressor")) as compressor:
        for frame in frames:
            header = bundle.header(*frame.shape[:2])
            payload = entropy.encode_latent(compressor.run(pad_to_stride(frame[None], stride))[0], header)
            received.append(entropy.decode_latent(payload, header)[None])
            step()
    return received


class Reader:
    """Feeds ONNX Runtime's calibrators: one input after the other, in chunks where it asks for them."""

    def __init__(self, name: str, inputs: Sequence[npt.NDArray[Any]], step: Any = None) -> None:
        self.name, self.inputs, self.step = name, inputs, step
        self.set_range(0, len(inputs))

    def __len__(self) -> int:
        return len(self.inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The part that `get_next` gives."""
        self._rest = iter(self.inputs[start_index:end_index])

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next input by name, or None at the end."""
        array = next(self._rest, None)
        if array is not None and self.step is not None:
            self.step()
        return None if array is None else {self.name: array}
