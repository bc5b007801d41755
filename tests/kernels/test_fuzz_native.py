"""The native decoder under address and undefined-behaviour sanitizers: random damage, and the fuzzer's corpus.

docs/fuzzing.md tells how the corpus came about.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import InputError
from latentseg.kernels import native_available
from latentseg.kernels.context_neighbours import History
from latentseg.kernels.frames import FrameDecoder

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "kernels" / "native"
CODERS: list[Any] = ["huffman-frame", "huffman-channel", "context", "inter"]
SCALINGS = [Scaling("tensor"), Scaling("channel"), Scaling("fixed", -1, 2)]


def corpus() -> dict[str, bytes]:
    with zipfile.ZipFile(HERE / "corpus" / "cases.zip") as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist())}


def coder_of(case: bytes) -> int:
    return case[0] % 3 if case[0] < 192 else 3


def header_of(case: bytes) -> StreamHeader:
    """What fuzz_decoder.cpp makes of a case's first eight bytes."""
    coder, scaling, bits = CODERS[coder_of(case)], SCALINGS[case[1] % 3], 1 + case[2] % 8
    if scaling.mode == "fixed" and case[1] // 9 % 2:
        scaling = Scaling("codebook", centres=tuple(range(2 if bits == 1 else 3 * 2**bits // 4)))
    shape = 1 + case[3] % 8, 1 + case[4] % 4, 1 + case[5] % 18
    if coder.startswith("huffman"):
        return StreamHeader(bytes(32), shape, bits, scaling, coder=coder, lane_symbols=16 + case[6])
    rows = 1 + case[6] % 12 if case[6] < 240 else 65535
    columns = max((15 + rows) // rows, 1 + case[7] % 24) if case[7] < 240 else min(65535, (1 << 24) // rows)
    return StreamHeader(bytes(32), shape, bits, scaling, coder=coder, tile=(rows, columns))


def symbols_of(case: bytes, implementation: Any) -> bytes | None:
    """None when the payload is refused."""
    try:
        return decode(case, implementation, floats=False).tobytes()
    except InputError:
        return None


def decode(case: bytes, implementation: Any, floats: bool) -> np.ndarray:
    header = header_of(case)
    decoder = FrameDecoder(header, implementation=implementation)
    at = 8
    if header.coder == "inter":
        planes = []
        for _ in range(2):
            planes.append(np.zeros(header.symbols, np.uint8))
            part = np.frombuffer(case[at : at + header.symbols], np.uint8)
            planes[-1][: len(part)] = part
            at += len(part)
        decoder._before = History(*(plane.reshape(header.latent_shape) for plane in planes))
    return decoder.decode_latent(case[at:], 1) if floats else decoder.decode_symbols(case[at:], 1)


def test_no_payload_leads_out_of_bounds(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("wants a C++ compiler")
    program = tmp_path / "fuzz_native"
    sanitize = ["-std=c++20", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread"]
    sanitize += ["-ffp-contract=off"]
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    probe = [compiler, *sanitize, str(tmp_path / "empty.cpp"), "-o", str(program)]
    if subprocess.run(probe, capture_output=True).returncode or subprocess.run([program]).returncode:
        pytest.skip("the compiler's sanitizers do not work here")
    # fuzz_rows.cpp includes context_rows.cpp.
    native = [path for path in sorted(NATIVE.glob("*.cpp")) if path.name not in ("module.cpp", "context_rows.cpp")]
    sources = [*sorted(HERE.glob("fuzz_*.cpp")), *native]
    subprocess.run([compiler, *sanitize, *map(str, sources), "-o", str(program)], check=True)

    cases = corpus()
    for name, case in cases.items():
        (tmp_path / name).write_bytes(case)
    result = subprocess.run([program, "400", "1", *cases], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    lines = [line.replace(",", "").split() for line in result.stdout.splitlines()]
    tally = {name: (int(decoded), int(refused)) for name, _, decoded, _, refused in lines}
    for coder in ("huffman", "context", "inter"):
        assert tally[coder][0] >= 400
        assert tally[coder][1] >= 1000
    assert sum(tally["corpus"]) == len(cases)
    if native_available():  # and so header_of() is right
        assert tally["corpus"][0] == sum(symbols_of(case, "native") is not None for case in cases.values())


@pytest.mark.skipif(not native_available(), reason="wants the native decoder")
@pytest.mark.parametrize("coder", range(4))
def test_implementations_take_the_corpus_alike(coder: int) -> None:
    cases = [case for case in corpus().values() if coder_of(case) == coder]
    assert {header_of(case).scaling.mode for case in cases} == {"tensor", "channel", "fixed", "codebook"}
    found = [symbols_of(case, "native") for case in cases]
    assert found == [symbols_of(case, "numpy") for case in cases]
    centred = [case for case, symbols in zip(cases, found, strict=True) if header_of(case).scaling.centres and symbols]
    assert len(centred) >= 5
    for case in centred:
        assert decode(case, "native", floats=True).tobytes() == decode(case, "numpy", floats=True).tobytes()
    decoded = sum(symbols is not None for symbols in found)
    assert 20 <= decoded <= len(cases) - 20
