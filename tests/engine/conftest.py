"""What the engine's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from latentseg.engine.bundle import Bundle
from latentseg.engine.engine import Engine


@pytest.fixture
def engine(tiny_bundle: Bundle) -> Iterator[Engine]:
    with Engine(tiny_bundle, threads=1) as made:
        yield made
