"""The native decoder's threads: same symbols, kept between frames and asleep in between, no trouble at fork and exit.

fuzz_native.cpp has several callers at once under sanitizers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentseg.bitstream import Scaling, StreamHeader
from latentseg.errors import InputError
from latentseg.kernels import entropy, native_available

pytestmark = pytest.mark.skipif(not native_available(), reason="wants the native decoder")
LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")

CODERS: list[Any] = ["context", "huffman-channel"]


def make(coder: Any, shape: tuple[int, int, int] = (7, 33, 61)) -> tuple[StreamHeader, np.ndarray, bytes]:
    """A frame of many lanes: groups of full and of partial tiles, more than threads."""
    tile = (4, 6) if coder == "context" else (0, 0)
    header = StreamHeader(bytes(32), shape, 5, Scaling("fixed", 0.0, 1.0), coder=coder, lane_symbols=24, tile=tile)
    q = np.random.default_rng(0).binomial(31, 0.3, shape).astype(np.uint8)
    q[1:2] = 3
    return header, q, entropy.encode_symbols(q, header)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("threads", [1, 2, 3, 16, 500])
def test_any_number_of_threads_gives_the_same(coder: str, threads: int) -> None:
    header, q, payload = make(coder)
    for _ in range(5):
        assert (entropy.decode_symbols(payload, header, "native", threads) == q).all()
    small, q, payload = make(coder, (1, 1, 1))  # one lane
    assert (entropy.decode_symbols(payload, small, "native", threads) == q).all()


@pytest.mark.parametrize("coder", CODERS)
def test_the_first_damaged_lane_is_named_by_any_number_of_threads(coder: str) -> None:
    header, _, payload = make(coder)
    for at in range(len(payload) - 1200, len(payload), 97):
        bad = bytearray(payload)
        bad[at] ^= 0x5A
        bad[-1] ^= 0x5A
        said = set()
        for threads in (1, 2, 3, 7):
            with pytest.raises(InputError, match=r"lane \d+ does not end") as caught:
                entropy.decode_symbols(bytes(bad), header, "native", threads)
            said.add(str(caught.value))
        assert len(said) == 1


def test_many_callers_at_once() -> None:
    frames = [make(coder) for coder in CODERS]
    wrong: list[Any] = []

    def call(caller: int) -> None:
        for i in range(40):
            header, q, payload = frames[(caller + i) % 2]
            if not (entropy.decode_symbols(payload, header, "native", 1 + (caller + i) % 4) == q).all():
                wrong.append((caller, i))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def run(body: str, first: str = "") -> str:
    """What a Python of its own prints that runs `first`, decodes make("context"), and runs `body`."""
    start = first + (
        "import os, sys, threading, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_entropy_threads import make\n"
        "from latentseg.kernels import entropy\n"
        "header, q, payload = make('context')\n"
        "def decode(threads): return (entropy.decode_symbols(payload, header, 'native', threads) == q).all()\n"
        "def count(): return len(os.listdir('/proc/self/task'))\n"
    )
    found = subprocess.run([sys.executable, "-c", start + body], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


@LINUX
def test_threads_are_made_once_and_sleep_between_frames() -> None:
    body = """
before = count()
for _ in range(50): assert decode(1)
assert count() == before
for _ in range(50): assert decode(3)
assert count() == before + 2, count()
for _ in range(50): assert decode(2)
assert count() == before + 2, count()
assert decode(5)
assert count() == before + 4, count()
used = time.process_time()
time.sleep(0.3)
print(time.process_time() - used)
"""
    assert float(run(body)) < 0.05


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="wants two CPUs")
@LINUX
def test_threads_keep_off_the_callers_cpu() -> None:
    body = """
before = set(os.listdir('/proc/self/task'))
everywhere = os.sched_getaffinity(0)
assert decode(3)
helpers = [os.sched_getaffinity(int(task)) for task in set(os.listdir('/proc/self/task')) - before]
assert len(helpers) == 2
assert all(cpus < everywhere and len(cpus) == len(everywhere) - 1 for cpus in helpers), helpers
assert os.sched_getaffinity(0) == everywhere
only = min(everywhere)
os.sched_setaffinity(0, {only})
assert decode(3)  # there is no other CPU: they stay where they are
"""
    assert run(body) == ""


@LINUX
def test_a_child_of_fork_has_threads_of_its_own() -> None:
    body = """
assert decode(3)
stop = threading.Event()
def keep():
    while not stop.is_set(): decode(3)
other = threading.Thread(target=keep)
other.start()  # forks come while its decoder holds what it holds
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        good = all(decode(3) for _ in range(3)) and count() == 3
        os._exit(0 if good else 1)
    children.append(child)
    time.sleep(0.002)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
other.join()
assert decode(3)
child = os.fork()
if not child:
    decode(3)
    sys.exit(7)  # the whole way out
print(codes, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(body).split("\n")[0] == f"{[0] * 20} 7"


def test_exit_ends_the_threads() -> None:
    """Without waiting for ever, and with exit handlers that decode, before ours and behind it."""
    decode_at_exit = "atexit.register(lambda: print(decode(3)))\n"
    assert run(f"assert decode(3)\n{decode_at_exit}", f"import atexit\n{decode_at_exit}") == "True\nTrue\n"
