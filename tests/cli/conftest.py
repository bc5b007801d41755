"""What the command line's tests share: a small clip in several shapes, and its stream."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from _clip import clip
from PIL import Image

from latentseg import cli
from latentseg.engine.bundle import Bundle


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a folder of PNGs."""
    path = tmp_path_factory.mktemp("clip") / "frames"
    path.mkdir()
    for index, frame in enumerate(clip()):
        Image.fromarray(frame).save(path / f"{index}.png")
    return path


@pytest.fixture(scope="session")
def stream(folder: Path, tiny_bundle: Bundle) -> Path:
    """The clip as a .lseg stream of the tiny bundle."""
    path = folder.parent / "clip.lseg"
    assert cli.main(["encode", str(folder), "-o", str(path), "--bundle", str(tiny_bundle.path), "-q"]) == 0
    return path


@pytest.fixture
def bundle_options(tiny_bundle: Bundle) -> list[str]:
    """`--bundle` of the tiny bundle."""
    return ["--bundle", str(tiny_bundle.path), "--threads", "1"]


@pytest.fixture
def command() -> list[str]:
    """The command line as a process of its own, which Ctrl-C ends even where the tests run in the background."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from latentseg.cli import main; sys.exit(main())"
    )
    assert os.name == "posix"
    return [sys.executable, "-c", code]
