from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from pipeline.runtimes import RuntimesError, RuntimeUnavailableError, cuda_driver
from pipeline.runtimes.cuda_driver import CudaDriver, compute_capability, device_problem


class FakeLibrary:
    """A driver library with host memory for device memory. Calls return the status planned for them, else 0."""

    def __init__(self) -> None:
        self.status: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in cuda_driver._SIGNATURES:
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            assert len(arguments) == len(cuda_driver._SIGNATURES[name])
            if not self.status.get(name):
                getattr(self, f"_{name}", lambda *_: None)(*arguments)
            return self.status.get(name, 0)

        setattr(self, name, function)
        return function

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:  # noqa: N802
        name.value = b"Test GPU"

    def _cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> None:  # noqa: N802
        number._obj.value = {75: 8, 76: 9}[attribute]

    def _cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version._obj.value = 12060

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:  # noqa: N802
        stream._obj.value = 77

    def _cuMemAlloc_v2(self, address: Any, size: int) -> None:  # noqa: N802
        block = ctypes.create_string_buffer(size)
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block

    def _cuMemFree_v2(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:  # noqa: N802
        ctypes.memmove(target, source, size)

    def _cuMemcpyDtoHAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:  # noqa: N802
        ctypes.memmove(target, source, size)

    def _cuGetErrorString(self, status: int, text: Any) -> None:  # noqa: N802
        text._obj.value = b"no CUDA-capable device"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: fake)
    return fake


def test_compute_capability_is_that_of_the_first_device_and_needs_no_context(library: FakeLibrary) -> None:
    assert compute_capability() == (8, 9)
    assert "cuDevicePrimaryCtxRetain" not in library.calls


def test_what_was_uploaded_comes_back(library: FakeLibrary) -> None:
    driver = CudaDriver()
    values = np.arange(12, dtype=np.float32)
    buffer = driver.allocate(values.nbytes)
    driver.upload(buffer, values)
    back = np.empty_like(values)
    driver.download(back, buffer)
    driver.synchronize()
    np.testing.assert_array_equal(back, values)
    assert (driver.device_name, driver.stream) == ("Test GPU", 77)
    assert driver.driver_version.endswith("cuda 12060")


def test_memory_is_freed_with_its_buffer(library: FakeLibrary) -> None:
    driver = CudaDriver()
    buffer = driver.allocate(8)
    assert len(library.memory) == 1
    del buffer
    assert library.memory == {}


def test_missing_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", absent)
    assert device_problem() == (
        "the NVIDIA driver library libcuda.so.1 is missing; install the driver, or give the container its GPUs."
    )
    with pytest.raises(RuntimeUnavailableError, match=r"libcuda\.so\.1 is missing"):
        CudaDriver()


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet"])
def test_driver_without_a_device_is_one_sentence(library: FakeLibrary, function: str) -> None:
    library.status[function] = 100
    assert device_problem() == (
        f"no NVIDIA GPU can be used here: the CUDA driver refused {function} with error 100 (no CUDA-capable device)."
    )


def test_looking_for_a_device_makes_no_context(library: FakeLibrary) -> None:
    assert device_problem() is None
    assert "cuDevicePrimaryCtxRetain" not in library.calls


def test_failed_call_names_the_call(library: FakeLibrary) -> None:
    driver = CudaDriver()
    library.status["cuMemAlloc_v2"] = 2
    with pytest.raises(RuntimesError, match="refused cuMemAlloc_v2 with error 2"):
        driver.allocate(8)
