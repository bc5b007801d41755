"""The runtime's walls: what a serving machine need not have is never imported, and what costs time is imported late."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import latentseg.engine, latentseg.cli
for package in (latentseg.engine, latentseg.cli, latentseg.bitstream, latentseg.kernels):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # The one place for triton: a machine that compiles kernels has it, one that serves does not.
        if not module.name.endswith("__main__") and not module.name.startswith("latentseg.kernels.triton."):
            importlib.import_module(module.name)
unwanted = {unwanted}
print(sorted(m for m in sys.modules if m in unwanted or m.startswith(tuple(u + "." for u in unwanted))))
print(sum(m.startswith("latentseg.engine.") for m in sys.modules))
"""


def test_engine_and_command_line_import_nothing_of_the_factory() -> None:
    unwanted = ("torch", "triton", "latentseg.models", "latentseg.training", "latentseg.export", "onnx")
    late = ("onnxruntime", "av", "PIL", "matplotlib", "safetensors")
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("{unwanted}", repr((*unwanted, *late)))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, modules = done.stdout.splitlines()
    assert found == "[]"
    assert int(modules) > 15  # it did walk the rooms
