"""What every recorded row says about where it was measured: the machine, and the versions that ran on it."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..engine.backends.base import usable_cores

# Distributions whose version can move a number in a row; those that are not installed are left out of the row.
_DISTRIBUTIONS = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings",
    "nvidia-dali-cuda130", "av", "pillow", "torch", "matplotlib",
)  # fmt: skip


# Instructions that decide how fast the networks and the coder are, in the kernel's words: x86's, then Arm's.
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_model(cpuinfo: str | None = None) -> str:
    """The CPU's marketing name, from `/proc/cpuinfo` text (read where `None`) or the platform module elsewhere."""
    if cpuinfo is None:
        cpuinfo = _cpuinfo()
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    if match:
        return " ".join(match.group(1).split())
    return platform.processor() or platform.machine() or "unknown"


def cpu_instructions(cpuinfo: str | None = None) -> list[str]:
    """Which of the instructions that matter here the CPU has, from `/proc/cpuinfo` text (read where `None`).

    CPUs of one marketing name may differ by them, and by a factor of two in what they do. Empty where it is not known.
    """
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo() if cpuinfo is None else cpuinfo, flags=re.MULTILINE)
    found = set(match.group(1).split()) if match else set()
    return [name for name in _INSTRUCTIONS if name in found]


def processor(machine: dict[str, Any]) -> str:
    """The CPU of a row's `machine`, for people: its name, and its instructions where the row has them."""
    known = " ".join(machine.get("instructions") or [])
    return f"{machine['cpu']} ({known})" if known else str(machine["cpu"])


def share_of(machine: dict[str, Any], threads: int) -> str:
    """The processor of a row's `machine`, and how many of its cores the row had."""
    return f"{processor(machine)}, {threads} of {machine['cores']} cores"


def describe_machine() -> dict[str, Any]:
    """Plain values for a JSON row.

    `cpu`, `instructions` (see `cpu_instructions`), `cores`, `memory_gib`, `os`, `load_before` (1-minute load average,
    which says whether something else was running; null where the platform has none).
    """
    memory = None
    load = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if hasattr(os, "getloadavg"):
        load = round(os.getloadavg()[0], 2)
    return {
        "cpu": cpu_model(),
        "instructions": cpu_instructions(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_gib": memory,
        "os": f"{platform.system()} {platform.release()}",
        "load_before": load,
    }


def describe_versions() -> dict[str, str]:
    """Name to version: Python, latentseg, the installed packages that matter, and the codec libraries they bundle."""
    from .. import __version__

    found = {"python": ".".join(map(str, sys.version_info[:3])), "latentseg": __version__}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    # The JPEG and video libraries are bundled inside the wheels; their own versions are what decoding speed hangs on.
    if "pillow" in found:
        from PIL import features

        found["libjpeg-turbo"] = str(features.version("libjpeg_turbo") or "absent (plain libjpeg)")
    if "av" in found:
        import av

        found["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
    return found


def describe_origin(kind: str, schema: int) -> dict[str, Any]:
    """What the rows of one run begin with: schema, type, date (UTC), machine and versions."""
    return {
        "schema": schema,
        "type": kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
