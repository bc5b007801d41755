"""latentseg: bytes in, masks out, and no pixel is ever decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine, load_bundle

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "load_bundle"]


def __getattr__(name: str) -> Any:
    # The two names of the facade load the engine only when used, so that `import latentseg` costs nothing.
    if name in {"Engine", "load_bundle"}:
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'latentseg' has no attribute {name!r}")
