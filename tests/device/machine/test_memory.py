from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from pipeline.device.machine import memory


def test_the_peak_stays_and_begins_anew_on_request() -> None:
    # not from malloc, which may take a free place of its heap and then gives nothing back
    block = mmap.mmap(-1, 40_000_000)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    before = memory.peak_memory_kb()
    assert before is not None
    block.close()
    assert memory.peak_memory_kb() == pytest.approx(before, rel=0.02)  # the kernel counts per CPU
    if not memory.reset_peak():
        pytest.skip("this system does not let the peak begin anew")
    after, current = memory.peak_memory_kb(), memory.current_memory_kb()
    assert after is not None
    assert current is not None
    assert after <= before - 30_000
    assert after == pytest.approx(current, rel=0.05)


def test_a_system_without_proc_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    assert (memory.peak_memory_kb(), memory.current_memory_kb()) == (None, None)


def test_a_peak_that_may_not_be_reset_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "absent")
    assert memory.reset_peak() is False


def test_a_dropped_file_is_read_from_the_disk_again(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 16))
        file.flush()
        os.fsync(file.fileno())  # pages that are not written yet cannot be dropped
    if memory.is_cached(path) is None:
        pytest.skip("this file system does not tell what is cached")
    assert memory.is_cached(path)
    memory.drop_from_cache([path, tmp_path / "absent"])
    assert not memory.is_cached(path)
    assert not memory.is_cached(path), "asking does not read the file"
    path.read_bytes()
    assert memory.is_cached(path)


def test_a_file_that_cannot_be_read_is_not_known_to_be_cached(tmp_path: Path) -> None:
    assert memory.is_cached(tmp_path / "absent") is None
    (tmp_path / "empty").touch()
    assert memory.is_cached(tmp_path / "empty") is None


def test_a_cold_start_reads_the_model_its_weights_and_the_package_of_the_runtime(tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin", "other.bin"):
        (tmp_path / name).write_bytes(b"x")
    found = memory.files_of_cold_start(tmp_path / "model.xml", "onnxruntime")
    assert {path.name for path in found if path.parent == tmp_path} == {"model.xml", "model.bin"}
    assert any(".so" in path.name for path in found)


def test_a_cold_start_reads_the_packages_beside_that_of_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trt", "trt_libs", "trt_other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = memory.files_of_cold_start(tmp_path / "model.onnx", "trt")
    assert found == [tmp_path / "trt/__init__.py", tmp_path / "trt_libs/__init__.py"]


def test_a_runtime_that_is_not_installed_leaves_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert memory.files_of_cold_start(tmp_path / "model.onnx", "no_such_runtime") == [tmp_path / "model.onnx"]
