"""What TensorRT for RTX needs beside TensorRT, with a double in its place: the target, and the cache of its kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.runtimes import ModelFileError, RuntimeUnavailableError, load, tensorrt_rtx_runtime
from pipeline.runtimes.tensorrt_rtx_runtime import TensorRtRtxRuntime
from tests.runtimes.tensorrt_double import CLASSES, install
from tests.runtimes.tensorrt_rtx_double import TensorRtRtxDouble


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorRtRtxDouble:
    module = TensorRtRtxDouble()
    install(monkeypatch, tmp_path, module)
    set_gpu(monkeypatch, 8, 9)
    return module


def set_gpu(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    monkeypatch.setattr(tensorrt_rtx_runtime, "compute_capability", lambda: capability)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "student_fp16.onnx"
    path.write_bytes(b"onnx")
    return path


def detail_of(model: Path, batch: int | None = 4) -> dict[str, Any]:
    return TensorRtRtxRuntime(model, precision="fp16", batch=batch).executed().detail


def cached_kernels(tmp_path: Path) -> Path:
    [kernels] = (tmp_path / "cache").rglob("*.kernels")
    return kernels


def test_an_engine_is_built_for_this_gpu_alone_and_answers(fake: TensorRtRtxDouble, model: Path) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    runtime = load("tensorrt_rtx", model, precision="fp16", batch=4)
    np.testing.assert_array_equal(runtime.run(images).logits, images.reshape(4, -1)[:, :CLASSES])
    [build] = fake.builds
    assert build["targets"] == [fake.ComputeCapability.CURRENT]
    executed = runtime.executed()
    assert (executed.precision, executed.provider) == ("fp16", "tensorrt_rtx:Test GPU")
    assert executed.detail["key"]["tensorrt_rtx"] == "1.7.1.116"


@pytest.mark.parametrize("capability", [(8, 7), (9, 0), (10, 0)])
def test_a_gpu_without_a_target_is_refused_in_one_sentence(
    fake: TensorRtRtxDouble, monkeypatch: pytest.MonkeyPatch, model: Path, capability: tuple[int, int]
) -> None:
    set_gpu(monkeypatch, *capability)
    sentence = (
        "TensorRT for RTX 1.7.1.116 has no target for this GPU of compute capability "
        f"{capability[0]}.{capability[1]}, only for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; use the runtime tensorrt on it."
    )
    assert TensorRtRtxRuntime.unavailable() == sentence
    with pytest.raises(RuntimeUnavailableError) as caught:
        detail_of(model)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (12, 0), (12, 1)])
def test_a_gpu_with_a_target_is_taken(
    fake: TensorRtRtxDouble, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    set_gpu(monkeypatch, *capability)
    assert TensorRtRtxRuntime.unavailable() is None


def test_what_turing_does_not_take_is_said(
    fake: TensorRtRtxDouble, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    fake.plan = None
    with pytest.raises(ModelFileError, match="TensorRT cannot build an engine from "):
        TensorRtRtxRuntime(model, precision="int8", batch=1)
    set_gpu(monkeypatch, 7, 5)
    with pytest.raises(ModelFileError, match=r"is for int8, but on GPUs of compute capability 7\.5 .* fp16 alone"):
        TensorRtRtxRuntime(model, precision="int8", batch=1)


def test_without_the_package_the_sentence_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    sentence = "tensorrt_rtx is not installed; install it with `pip install tensorrt-rtx-cu12`."
    assert TensorRtRtxRuntime.unavailable() == sentence


@pytest.mark.parametrize(("batch", "largest"), [(4, 4), (None, 64)])
def test_kernels_are_compiled_before_the_first_inference(
    fake: TensorRtRtxDouble, model: Path, batch: int | None, largest: int
) -> None:
    detail_of(model, batch)
    assert fake.executions == [(largest, 3, 4, 4)]


def test_a_second_start_takes_the_kernels_from_the_cache_and_tells_so(
    fake: TensorRtRtxDouble, model: Path, tmp_path: Path
) -> None:
    first, second = detail_of(model), detail_of(model)
    assert fake.compiled == len(fake.executions) == 1
    assert (first["kernels_from_cache"], second["kernels_from_cache"]) == (False, True)
    assert first["kernel_seconds"] == second["kernel_seconds"] >= 0
    assert cached_kernels(tmp_path).read_bytes() == b"kernels 1"


@pytest.mark.parametrize("change", ["model", "batch", "version", "gpu", "driver"])
def test_kernels_of_other_circumstances_are_not_used(fake: TensorRtRtxDouble, model: Path, change: str) -> None:
    detail_of(model)
    if change == "model":
        model.write_bytes(b"another onnx")
    elif change == "version":
        fake.__version__ = "1.8.0"
    elif change == "gpu":
        fake.driver.device_name = "Other GPU"
    elif change == "driver":
        fake.driver.driver_version = "570.1 cuda 12080"
    assert detail_of(model, 2 if change == "batch" else 4)["kernels_from_cache"] is False


@pytest.mark.parametrize("damage", ["cut", "no record", "of another engine", "refused"])
def test_kernels_that_cannot_be_used_are_compiled_again(
    fake: TensorRtRtxDouble, model: Path, tmp_path: Path, damage: str
) -> None:
    detail_of(model)
    kernels = cached_kernels(tmp_path)
    if damage == "cut":
        kernels.write_bytes(b"ker")
    elif damage == "no record":
        kernels.with_name(f"{kernels.name}.json").unlink()
    elif damage == "of another engine":
        fake.refused, fake.plan = {b"plan"}, b"new plan"
    else:
        fake.refused_kernels = {b"kernels 1"}
    assert detail_of(model)["kernels_from_cache"] is False
    assert kernels.read_bytes() == b"kernels 2"
