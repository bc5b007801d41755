"""The hot operations, each as a NumPy reference and native C++: quantize, dequantize, entropy (frames: in order).

Both give the same bits, everywhere; `implementation` ("auto", "native" or "numpy") picks one, and "auto" takes the
native one where it is built.
"""

from __future__ import annotations

from . import dequantize, entropy, frames, quantize
from .dispatch import native_available

__all__ = ["dequantize", "entropy", "frames", "native_available", "quantize"]
