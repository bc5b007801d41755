"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from latentseg.engine.bundle import Bundle

_REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (`../shared/data`), or `$LATENTSEG_SHARED/data`."""
    root = Path(os.environ.get("LATENTSEG_SHARED", _REPO.parent / "shared")) / "data"
    if not root.is_dir():
        pytest.skip("wants the shared data folder beside the checkout (or LATENTSEG_SHARED); not found")
    return root


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of all four roles whose models are block means; see `_tiny_bundle.py`. Do not write into it."""
    from _tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
