from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.device.machine.page_cache import drop_from_cache, files_of_cold_start, is_cached


def test_a_dropped_file_is_read_from_the_disk_again(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 16))
        file.flush()
        os.fsync(file.fileno())  # pages that are not written yet cannot be dropped
    if is_cached(path) is None:
        pytest.skip("this file system does not tell what is cached")
    assert is_cached(path)
    drop_from_cache([path, tmp_path / "absent"])
    assert not is_cached(path)
    path.read_bytes()
    assert is_cached(path)


def test_a_file_that_cannot_be_read_is_not_known_to_be_cached(tmp_path: Path) -> None:
    assert is_cached(tmp_path / "absent") is None


def test_a_cold_start_reads_the_model_its_weights_and_the_package_of_the_runtime(tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin", "other.bin"):
        (tmp_path / name).write_bytes(b"x")
    found = files_of_cold_start(tmp_path / "model.xml", "onnxruntime")
    assert {path.name for path in found if path.parent == tmp_path} == {"model.xml", "model.bin"}
    assert any(".so" in path.name for path in found)


def test_a_runtime_that_is_not_installed_leaves_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert files_of_cold_start(tmp_path / "model.onnx", "no_such_runtime") == [tmp_path / "model.onnx"]
