"""The README does what it says: its commands run, its Python example runs, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *ROOT.glob("bundles/*/*.md"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drive.mp4 (10 frames, 118x90) and latent.npy."""
    import av
    from _clip import clip

    path = tmp_path_factory.mktemp("readme")
    with av.open(str(path / "drive.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 118, 90, "yuv420p"
        for picture in clip(10, 90, 118):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    np.save(path / "latent.npy", np.arange(2 * 3 * 5, dtype=np.int32).reshape(2, 3, 5))
    return path


def environment(folder: Path) -> dict[str, str]:
    """The commands find `latentseg` as this interpreter runs it, installed or not."""
    script = folder / "bin" / "latentseg"
    if not script.exists():
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m latentseg.cli "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}


def test_commands_run(folder: Path) -> None:
    commands = "\n".join(blocks("sh"))
    assert commands.count("latentseg ") >= 8
    script = "set -e -o pipefail\n" + commands
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("drive.lseg", "labels.mp4", "decoded.mp4", "bench.png", "latent.lseg"):
        assert (folder / name).stat().st_size > 0
    assert len(list((folder / "label-pngs").glob("*.png"))) == 10
    assert done.stdout.count('"type": "frame"') == 20
    assert np.array_equal(np.load(folder / "again.npy")[0], np.load(folder / "latent.npy"))


def test_python_example_runs(folder: Path) -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    encode = ["latentseg", "encode", "drive.mp4", "-o", "drive.lseg", "--overwrite"]
    subprocess.run(encode, cwd=folder, env=environment(folder), check=True)
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("0 (90, 118) uint8 ")
    assert (len(lines), lines[-1]) == (11, "lost 0")


def test_verbs_of_the_indented_commands_parse() -> None:
    """What cannot be run here (it needs CamVid, or an hour) is at least a command line that the verb takes."""
    from latentseg.cli import verb_parser

    card = (ROOT / "bundles" / "camvid-compact" / "README.md").read_text()
    text = re.sub(r" \\\n +", " ", README + card)  # a command may go on in the next line
    lines = re.findall(r"^    (latentseg (?:train|eval|export|bench) .*)$", text, flags=re.MULTILINE)
    assert len(lines) >= 11
    for line in lines:
        words = line.split()
        verb_parser(words[1]).parse_all(words[2:])


def test_readme_is_short_and_names_real_targets() -> None:
    assert len(README.splitlines()) <= 150
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
