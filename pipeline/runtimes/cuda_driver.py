"""The calls of the CUDA driver that TensorRT needs: memory, copies and a stream.

The calls use the driver library ``libcuda.so.1`` through ctypes, because it comes with the driver on every desktop,
server and Jetson. The name and place of the CUDA runtime library vary, pycuda must be compiled, and cuda-python and
torch are large and not on a Jetson by default. TensorRT and these calls share the primary context of the device.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runtimes import RuntimesError, RuntimeUnavailableError

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
}
_STREAM_NON_BLOCKING = 1
_COMPUTE_CAPABILITY = (75, 76)  # attributes: major, minor


def device_problem() -> str | None:
    """Return None if there is a driver and a device, else the reason in one sentence. Creates no context."""
    try:
        _call(_open_library(), "cuDeviceGet", byref(c_int()), 0)
    except RuntimeUnavailableError as error:
        return str(error)
    except RuntimesError as error:
        return f"no NVIDIA GPU can be used here: {error}"
    return None


def compute_capability() -> tuple[int, int]:
    """Of the first device, such as (8, 9). Creates no context. Raises RuntimesError: there is no driver or device."""
    library = _open_library()
    device, number = c_int(), c_int()
    _call(library, "cuDeviceGet", byref(device), 0)
    found = []
    for attribute in _COMPUTE_CAPABILITY:
        _call(library, "cuDeviceGetAttribute", byref(number), attribute, device)
        found.append(number.value)
    major, minor = found
    return major, minor


class CudaDriver:
    """The first CUDA device with one stream. Only the thread that created the object may use it.

    Attributes:
        device_name: name such as "NVIDIA Jetson Orin Nano".
        driver_version: version of the kernel module, or "unknown", and the CUDA version that the driver supports.
        stream: handle for ``execute_async_v3``.

    Raises:
        RuntimeUnavailableError: there is no driver or no device.
    """

    def __init__(self) -> None:
        if reason := device_problem():
            raise RuntimeUnavailableError(reason)
        self._library = _open_library()
        device, context, stream, version = c_int(), c_void_p(), c_void_p(), c_int()
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGet", byref(device), 0)
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDriverGetVersion", byref(version))
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", byref(stream), _STREAM_NON_BLOCKING)
        self.device_name = name.value.decode(errors="replace")
        self.driver_version = f"{_kernel_module()} cuda {version.value}"
        self.stream = int(stream.value or 0)

    def allocate(self, size: int) -> DeviceBuffer:
        """Allocate ``size`` bytes of device memory, freed when the buffer is no longer referenced."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), size)
        return DeviceBuffer(self, address.value)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def upload(self, buffer: DeviceBuffer, source: NDArray[np.float32]) -> None:
        """Queue a copy from host to device. ``source`` must be contiguous and live until ``synchronize``."""
        self._call("cuMemcpyHtoDAsync_v2", buffer.address, source.ctypes.data, source.nbytes, self.stream)

    def download(self, target: NDArray[np.float32], buffer: DeviceBuffer) -> None:
        """Queue a copy from device to host. ``target`` must be contiguous and live until ``synchronize``."""
        self._call("cuMemcpyDtoHAsync_v2", target.ctypes.data, buffer.address, target.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        self._call("cuStreamSynchronize", self.stream)

    def _call(self, function: str, *arguments: Any) -> None:
        _call(self._library, function, *arguments)


class DeviceBuffer:
    """Device memory at ``address``."""

    def __init__(self, driver: CudaDriver, address: int) -> None:
        self.address = address
        # At exit the driver frees all memory of the process itself, and its calls may fail.
        weakref.finalize(self, driver.free, address).atexit = False


def _open_library() -> ctypes.CDLL:
    """Load and initialise the driver library."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeUnavailableError(
            "the NVIDIA driver library libcuda.so.1 is missing; install the driver, or give the container its GPUs."
        ) from error
    for function, types in _SIGNATURES.items():
        getattr(library, function).argtypes = types
    _call(library, "cuInit", 0)
    return library


def _call(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    status = getattr(library, function)(*arguments)
    if status:
        text = c_char_p()
        library.cuGetErrorString(status, byref(text))
        reason = text.value.decode(errors="replace") if text.value else "no description"
        raise RuntimesError(f"the CUDA driver refused {function} with error {status} ({reason}).")


def _kernel_module() -> str:
    """Version of the driver's kernel module, such as "560.35.03", or "unknown"."""
    path = Path("/proc/driver/nvidia/version")
    if not path.is_file():
        return "unknown"
    words = path.read_text(encoding="utf-8", errors="replace").splitlines()[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
