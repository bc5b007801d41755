"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (`../shared/data`), or `$LATENTSEG_SHARED/data`."""
    root = Path(os.environ.get("LATENTSEG_SHARED", _REPO.parent / "shared")) / "data"
    if not root.is_dir():
        pytest.skip("wants the shared data folder beside the checkout (or LATENTSEG_SHARED); not found")
    return root
