"""Networks of the tests' own in the registry, for as long as they are needed: no other test may see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from latentseg.models import registry


@contextmanager
def registered(*networks: tuple[str, registry.Kind, registry.Factory]) -> Iterator[None]:
    """(name, kind, factory) of each, known until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
        patch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
        for name, kind, factory in networks:
            registry.register(name, kind=kind, description="for tests")(factory)
        yield
