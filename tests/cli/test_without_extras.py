"""On a machine with NumPy alone: what needs no optional package works, what needs one says which and how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# A machine without the extras has neither their modules nor their metadata.
BLOCKER = """
import sys
from importlib import metadata
known = metadata.version
def version(name):
    if name in ("torch", "onnxruntime", "onnx", "av", "pillow", "matplotlib", "safetensors"):
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnxruntime", "onnx", "av", "PIL", "matplotlib", "safetensors"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
from latentseg import cli
sys.exit(cli.main())
"""


def without_extras(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKER, *argv], capture_output=True, text=True)


def test_the_container_needs_numpy_alone(tmp_path: Path) -> None:
    latent = np.random.default_rng(0).integers(0, 256, (2, 3, 4), np.uint8)
    np.save(tmp_path / "in.npy", latent)
    for argv in (
        ["pack", str(tmp_path / "in.npy"), "-o", str(tmp_path / "x.lseg")],
        ["inspect", str(tmp_path / "x.lseg")],
        ["unpack", str(tmp_path / "x.lseg"), "-o", str(tmp_path / "out.npy")],
        ["doctor"],
    ):
        done = without_extras(*argv)
        assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), latent[None])


@pytest.mark.parametrize(
    ("verb", "package", "extra"),
    [("run", "onnxruntime", "cpu"), ("decode", "onnxruntime", "cpu"), ("encode", "pillow", "video")],
)
def test_what_is_missing_is_named(
    verb: str, package: str, extra: str, folder: Path, stream: Path, tmp_path: Path, bundle_options: list[str]
) -> None:
    source = folder if verb == "encode" else stream
    output = {"run": [], "decode": ["-o", str(tmp_path / "x.mp4")], "encode": ["-o", str(tmp_path / "x.lseg")]}[verb]
    done = without_extras(verb, str(source), *output, *bundle_options)
    assert done.returncode == 6, done.stderr
    assert f"'{package}', which is not installed" in done.stderr
    assert f"hint: pip install 'latentseg[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
