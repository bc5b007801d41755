"""The native decoder under address and undefined-behaviour sanitizers, on damaged payloads (fuzz_native.cpp)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "kernels" / "native"


def test_no_payload_leads_out_of_bounds(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("wants a C++ compiler")
    program = tmp_path / "fuzz_native"
    sanitize = ["-std=c++20", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    probe = [compiler, *sanitize, str(tmp_path / "empty.cpp"), "-o", str(program)]
    if subprocess.run(probe, capture_output=True).returncode or subprocess.run([program]).returncode:
        pytest.skip("the compiler's sanitizers do not work here")
    sources = [
        HERE / "fuzz_native.cpp",
        *(path for path in sorted(NATIVE.glob("*.cpp")) if path.name != "module.cpp"),
    ]
    subprocess.run([compiler, *sanitize, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([program, "400", "1"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    lines = [line.replace(",", "").split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["huffman", "context"]
    for _, _, decoded, _, refused in lines:
        assert int(decoded) >= 400
        assert int(refused) >= 1000
