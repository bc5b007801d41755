"""What a GPU says of itself while something runs: memory in use, and energy spent."""

from __future__ import annotations

import ctypes
from typing import Any

from ..errors import LatentsegError
from ..kernels.gpu import device as devices
from ..kernels.gpu.device import Device

MIB = 1 << 20
_LIBRARY = "libnvidia-ml.so.1"
_ID_BYTES = 32


def memory_in_use(device: Device) -> int:
    """Bytes of the GPU that are taken, by whomever. Raises ArtifactError where the driver does not say."""
    with device.active():
        error, free, total = devices.cuda_bindings().cuMemGetInfo()
    if int(error) != 0:
        raise device.failed("cuMemGetInfo", getattr(error, "name", error))
    return int(total) - int(free)


class Energy:
    """The first GPU's counter of energy, through NVML.

    Attributes
    ----------
    reason: why it cannot be read ("" where it can).
    """

    def __init__(self, library: str = _LIBRARY) -> None:
        self.reason = ""
        self._handle = ctypes.c_void_p()
        try:
            self._nvml: Any = ctypes.CDLL(library)
            self._call("nvmlInit_v2")
            self._call("nvmlDeviceGetHandleByPciBusId_v2", _bus_id(), ctypes.byref(self._handle))
            self.joules()
        except (OSError, AttributeError, RuntimeError, LatentsegError) as error:
            self.reason = str(error).splitlines()[0]

    def joules(self) -> float:
        """Joules since the driver was loaded; to be asked only where there is no `reason`."""
        millijoules = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(millijoules))
        return millijoules.value * 1e-3

    def _call(self, name: str, *arguments: Any) -> None:
        found = int(getattr(self._nvml, name)(*arguments))
        if found != 0:
            raise RuntimeError(f"{name} gave {found}")


def _bus_id() -> bytes:
    """Of CUDA's first device: NVML numbers them all, whichever the process may see."""
    driver = devices.cuda_bindings()
    for name, arguments in (("cuInit", (0,)), ("cuDeviceGetPCIBusId", (_ID_BYTES, 0))):
        try:
            error, *found = getattr(driver, name)(*arguments)
        except Exception as failure:  # the package's own errors where there is no driver are of several classes
            raise RuntimeError(f"{name}: {failure}") from None
        if int(error) != 0:
            raise RuntimeError(f"{name} gave {getattr(error, 'name', error)}")
    return bytes(found[0]).split(b"\0")[0]
