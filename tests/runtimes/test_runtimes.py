from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import runtimes
from pipeline.runtimes import (
    Executed,
    ModelFileError,
    PrecisionError,
    RuntimeUnavailableError,
    check_executed,
    precision_of,
    summarise,
)
from pipeline.runtimes.openvino_runtime import openvino_core, precision_hint
from tests.conftest import ROOT
from tests.runtimes.conftest import CLASSES, TinyNetwork

HERE = ("torch", "onnxruntime", "openvino")


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_fp32_logits_are_those_of_the_torch_network(tiny: TinyNetwork, name: str, batch: int | None) -> None:
    runtime = runtimes.load(name, tiny.file(name), precision="fp32", threads=1, batch=batch)
    step = batch or len(tiny.images)
    parts = [runtime.run(tiny.images[start : start + step]).logits for start in range(0, len(tiny.images), step)]
    logits = np.concatenate(parts)
    assert logits.dtype == np.float32
    assert logits.shape == (4, CLASSES)
    np.testing.assert_allclose(logits, tiny.logits, atol=1e-4)


@pytest.mark.parametrize("name", HERE)
def test_dynamic_batch_accepts_any_number_of_images(tiny: TinyNetwork, name: str) -> None:
    runtime = runtimes.load(name, tiny.file(name), precision="fp32", threads=1)
    for count in (1, 3, 4):
        np.testing.assert_allclose(runtime.run(tiny.images[:count]).logits, tiny.logits[:count], atol=1e-4)


@pytest.mark.parametrize("name", HERE)
def test_earlier_logits_survive_later_runs(tiny: TinyNetwork, name: str) -> None:
    runtime = runtimes.load(name, tiny.file(name), precision="fp32", threads=1, batch=1)
    first = runtime.run(tiny.images[:1]).logits
    kept = first.copy()
    runtime.run(tiny.images[1:2])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", HERE)
def test_another_batch_size_than_the_fixed_one_is_refused(tiny: TinyNetwork, name: str) -> None:
    runtime = runtimes.load(name, tiny.file(name), precision="fp32", threads=1, batch=2)
    with pytest.raises(ValueError, match="batches of 2 images, but got 3"):
        runtime.run(tiny.images[:3])


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("run_before", [False, True])
def test_fp32_is_executed_as_fp32(tiny: TinyNetwork, name: str, batch: int | None, run_before: bool) -> None:
    runtime = runtimes.load(name, tiny.file(name), precision="fp32", threads=1, batch=batch)
    if run_before:
        runtime.run(tiny.images[:2])
    executed = runtime.executed()
    assert executed.precision == "fp32"
    assert executed.threads == 1
    assert executed.version
    assert check_executed("fp32", executed) is None
    json.dumps(executed.detail)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_is_executed_on_bytes(tiny: TinyNetwork, name: str) -> None:
    runtime = runtimes.load(name, tiny.file(name, "int8"), precision="int8", threads=1, batch=4)
    assert runtime.executed().precision == "int8"
    np.testing.assert_allclose(runtime.run(tiny.images).logits, tiny.logits, atol=0.1)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ARM has float16 kernels")
def test_fp16_in_onnxruntime_on_x86_is_reported_as_fp32(tiny: TinyNetwork) -> None:
    executed = runtimes.load("onnxruntime", tiny.file("onnxruntime", "fp16"), precision="fp16", threads=1).executed()
    assert executed.precision == "fp32"
    assert check_executed("fp16", executed) == "fp16 was asked for but CPUExecutionProvider executed fp32."


def test_fp16_in_openvino_is_reported_as_the_cpu_can(tiny: TinyNetwork) -> None:
    capable = "FP16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    executed = runtimes.load("openvino", tiny.file("openvino", "fp16"), precision="fp16", threads=1).executed()
    assert executed.precision == ("fp16" if capable else "fp32")
    assert executed.detail["precision_hint_resolved"] == executed.precision
    assert (check_executed("fp16", executed) is None) == capable


@pytest.mark.parametrize(("has_fp16", "hint"), [(True, "f16"), (False, "f32")])
def test_fp16_files_are_never_run_with_fewer_digits_in_openvino(has_fp16: bool, hint: str) -> None:
    assert precision_hint("fp16", has_fp16=has_fp16) == hint


def test_an_fp32_graph_claimed_as_int8_is_found_out(tiny: TinyNetwork) -> None:
    executed = runtimes.load("onnxruntime", tiny.file("onnxruntime"), precision="int8", threads=1).executed()
    assert check_executed("int8", executed) == "int8 was asked for but CPUExecutionProvider executed fp32."


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("kept", [0, 200, 5000])
def test_truncated_file_is_one_sentence_that_names_it(
    tiny: TinyNetwork, name: str, kept: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = tiny.file(name)
    broken = tmp_path / f"broken{whole.suffix}"
    broken.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ModelFileError) as caught:
        runtimes.load(name, broken, precision="fp32")
    message = str(caught.value)
    assert str(broken) in message
    assert "\n" not in message
    assert message.endswith("export it again.")
    assert "Traceback" not in capfd.readouterr().err


def test_truncated_weights_beside_an_ir_file_are_one_sentence(tiny: TinyNetwork, tmp_path: Path) -> None:
    whole = tiny.file("openvino")
    broken = tmp_path / "broken.xml"
    broken.write_bytes(whole.read_bytes())
    broken.with_suffix(".bin").write_bytes(whole.with_suffix(".bin").read_bytes()[:100])
    with pytest.raises(ModelFileError, match=r"broken\.xml cannot be loaded by openvino \(.*weights.*\)"):
        runtimes.load("openvino", broken, precision="fp32")


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_missing_file_names_the_file(name: str, tmp_path: Path) -> None:
    suffix = {"torch": ".pt2", "openvino": ".xml"}.get(name, ".onnx")
    with pytest.raises(ModelFileError, match=f"absent{suffix} does not exist"):
        runtimes.load(name, tmp_path / f"absent{suffix}", precision="fp32")


def test_file_of_another_runtime_is_refused(tiny: TinyNetwork) -> None:
    with pytest.raises(ModelFileError, match=r"is not a \.pt2 file"):
        runtimes.load("torch", tiny.file("onnxruntime"), precision="fp32")


def test_unknown_precision_is_refused(tiny: TinyNetwork) -> None:
    with pytest.raises(PrecisionError, match="'int4' is unknown; use one of fp32, fp16, bf16, int8"):
        runtimes.load("onnxruntime", tiny.file("onnxruntime"), precision="int4")


def test_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="'tflite' is unknown"):
        runtimes.load("tflite", tmp_path / "x", precision="fp32")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_absent_device_is_one_sentence(tiny: TinyNetwork, name: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"{name} has no .* here, only"):
        runtimes.load(name, tiny.file(name), precision="fp32", device="toaster")


@pytest.mark.parametrize("name", HERE)
def test_what_is_installed_is_available(name: str) -> None:
    assert runtimes.runtime_class(name).unavailable() is None


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_missing_package_is_one_sentence_with_the_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    reason = runtimes.runtime_class(name).unavailable()
    assert reason is not None
    package = "tensorrt-rtx-cu12" if name == "tensorrt_rtx" else name
    assert f"`pip install {package}`" in reason


def test_precision_is_one_name_or_counts() -> None:
    assert summarise([]) == "unknown"
    assert summarise(["int8", "int8"]) == "int8"
    assert summarise(["fp32", "int8", "int8"]) == "mixed:int8=2,fp32=1"
    assert [precision_of(name) for name in ("u8", "FLOAT16", "bf16", "f64")] == ["int8", "fp16", "bf16", "f64"]


def test_precision_that_a_runtime_does_not_report_is_no_match() -> None:
    executed = Executed("unknown", "tensorrt:GPU", "11", 0, {})
    assert check_executed("fp16", executed) == "fp16 was asked for and tensorrt:GPU does not report what it executed."


def test_a_signal_is_survived_after_several_openvino_models_came_and_went(tiny: TinyNetwork) -> None:
    program = (
        "import gc, signal, sys; from pathlib import Path; from pipeline import runtimes\n"
        "signal.signal(signal.SIGUSR1, lambda *arguments: print('handled'))\n"
        "load = lambda: runtimes.load('openvino', Path(sys.argv[1]), precision='fp32')\n"
        "first, second = load(), load()\n"
        "del first; gc.collect(); del second; gc.collect()\n"
        "signal.raise_signal(signal.SIGUSR1)"
    )
    command = [sys.executable, "-c", program, str(tiny.file("openvino"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
