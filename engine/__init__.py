"""The runtime: bundles, backends, sources, the pipeline and sinks. Never imports torch, triton, models, training or
export, and imports ONNX Runtime, PyAV and Pillow only when they are used."""

from __future__ import annotations

from .bundle import Bundle, ClassInfo, CodecSpec, load_bundle, named_bundles, shipped_bundles, write_bundle
from .engine import Engine
from .result import ClassifiedResult, EncodeSummary, Result
from .run import Run

__all__ = [
    "Bundle",
    "ClassInfo",
    "ClassifiedResult",
    "CodecSpec",
    "EncodeSummary",
    "Engine",
    "Result",
    "Run",
    "load_bundle",
    "named_bundles",
    "shipped_bundles",
    "write_bundle",
]
