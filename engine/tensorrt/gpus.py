"""The NVIDIA GPUs of this machine, asked of the driver through `cuda.bindings`: no context is made, no memory taken."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BackendMissingError

_MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class GpuInfo:
    """name: the device's.  capability: major * 10 + minor.  memory: in bytes."""

    name: str
    capability: int
    memory: int


@dataclass(frozen=True)
class Gpus:
    """What was found.

    driver: version of the driver ("" where the system does not tell).  cuda: newest CUDA version that it runs ("13.0").
    devices: in the driver's order.  reason: why there is none ("" where there is one).
    """

    driver: str
    cuda: str
    devices: tuple[GpuInfo, ...]
    reason: str


def find_gpus(cuda: Any = None) -> Gpus:
    """Ask the driver. `cuda`: `cuda.bindings.driver`, or what behaves like it. Never raises: `reason` says why not."""
    driver = _driver_version()
    if cuda is None:
        try:
            from cuda.bindings import driver as bindings
        except ImportError:
            return Gpus(driver, "", (), "cuda-bindings is not installed: pip install 'latentseg[gpu]'")
        cuda = bindings
    try:
        _call(cuda, "cuInit", 0)
        version = _call(cuda, "cuDriverGetVersion")
        handles = [_call(cuda, "cuDeviceGet", index) for index in range(_call(cuda, "cuDeviceGetCount"))]
        devices = tuple(_device(cuda, handle) for handle in handles)
    except Exception as error:  # the package's own errors where there is no driver are of several classes
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        return Gpus(driver, "", (), f"no NVIDIA driver that answers ({reason})")
    release = f"{version // 1000}.{version % 1000 // 10}"
    return Gpus(driver, release, devices, "" if devices else "the driver knows no GPU")


def this_gpu(cuda: Any = None) -> GpuInfo:
    """The first GPU. Raises BackendMissingError where there is none."""
    found = find_gpus(cuda)
    if not found.devices:
        raise BackendMissingError(
            f"this wants an NVIDIA GPU: {found.reason}",
            hint="run it on a machine with a GPU; latentseg doctor shows what this one has",
        )
    return found.devices[0]


def _device(cuda: Any, handle: Any) -> GpuInfo:
    names = [f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}" for part in ("MAJOR", "MINOR")]
    attributes = [getattr(cuda.CUdevice_attribute, name) for name in names]
    major, minor = (int(_call(cuda, "cuDeviceGetAttribute", attribute, handle)) for attribute in attributes)
    name = _call(cuda, "cuDeviceGetName", 128, handle).split(b"\0")[0].decode()
    return GpuInfo(name, 10 * major + minor, int(_call(cuda, "cuDeviceTotalMem", handle)))


def _call(cuda: Any, name: str, *arguments: Any) -> Any:
    error, *results = getattr(cuda, name)(*arguments)
    if int(error) != 0:
        raise RuntimeError(f"{name} failed: {getattr(error, 'name', error)}")
    return results[0] if results else None


def _driver_version() -> str:
    """The kernel module's version where Linux shows it, such as "580.65.06"."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _MODULE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""
