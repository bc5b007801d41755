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
