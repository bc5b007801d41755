"""What a row says about its machine is plain JSON and carries no path and no host name."""

from __future__ import annotations

import json
import os
import platform

import numpy

from latentseg.benchmarks import machine


def test_cpu_model_reads_the_kernel_s_text() -> None:
    text = "processor\t: 0\nvendor_id\t: X\nmodel name\t: Some  CPU @ 2.00GHz\nflags\t: a b\nmodel name\t: Other\n"
    assert machine.cpu_model(text) == "Some CPU @ 2.00GHz"
    assert machine.cpu_model("")  # without that line there is still an answer


def test_instructions_in_the_kernel_s_words() -> None:
    x86 = "model name\t: A\nflags\t\t: fpu avx512f avx2 avx512_vnni avx512_bf16_not\nflags\t\t: amx_int8\n"
    assert machine.cpu_instructions(x86) == ["avx2", "avx512f", "avx512_vnni"]
    assert machine.cpu_instructions("Features\t: fp asimd i8mm bf16\n") == ["asimd", "i8mm", "bf16"]
    assert machine.cpu_instructions("") == []
    assert machine.processor({"cpu": "A", "instructions": ["avx2", "avx512f"]}) == "A (avx2 avx512f)"
    # Rows from before they were noted, and machines that do not tell.
    assert machine.processor({"cpu": "A"}) == machine.processor({"cpu": "A", "instructions": []}) == "A"


def test_machine_is_plain_json() -> None:
    found = machine.describe_machine()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["cores"] >= 1
    assert platform.node() not in json.dumps(found) or not platform.node()


def test_cores_follow_affinity() -> None:
    if hasattr(os, "sched_getaffinity"):
        assert machine.describe_machine()["cores"] == len(os.sched_getaffinity(0))


def test_versions_name_what_ran() -> None:
    found = machine.describe_versions()
    assert found["numpy"] == numpy.__version__
    assert found["python"].count(".") == 2
    assert {"latentseg", "pillow", "libjpeg-turbo", "av", "libavcodec"} <= set(found)
