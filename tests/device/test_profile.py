from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.device import profile
from pipeline.device.benchmark.plan import Plan
from pipeline.runtimes import Executed
from pipeline.runtimes.tensorrt_rtx_runtime import TensorRtRtxRuntime
from tests.device.conftest import TinyModel


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of a moment."""
    for name, value in {"warmup_seconds": 0.0, "min_seconds": 0.0, "min_count": 80}.items():
        monkeypatch.setattr(Plan, name, value)


def said(capsys: pytest.CaptureFixture[str], *words: object, expected: int = 0) -> str:
    assert profile.main([str(word) for word in words]) == expected
    output = capsys.readouterr()
    assert (output.err == "") == (expected == 0)
    return output.out + output.err


@pytest.mark.parametrize(("name", "layer"), [("onnxruntime", "Conv(float): 1"), ("openvino", "Convolution:")])
def test_layers_precisions_and_latency_are_told(
    capsys: pytest.CaptureFixture[str], tiny_model: TinyModel, name: str, layer: str
) -> None:
    text = said(capsys, tiny_model.path, "--runtime", name, "--batch", 2)
    assert ", executes fp32\n" in text.splitlines(keepends=True)[0]
    assert f"\n  {layer}" in text
    assert "80 calls with 2 random images, in one process" in text
    assert "too_few_samples: 1 round, 2 needed for an interval." in text


def test_a_precision_that_is_not_executed_is_told(capsys: pytest.CaptureFixture[str], tiny_model: TinyModel) -> None:
    text = said(capsys, tiny_model.path, "--runtime", "onnxruntime", "--precision", "int8")
    assert "\nint8 was asked for but CPUExecutionProvider executed fp32.\n" in text


def test_without_a_gpu_the_plan_of_rtx_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    executed = Executed("int8", "the plan of tensorrt_rtx", "1.7", 0, {"layers": 3, "compute_layers": {"conv": "int8"}})
    monkeypatch.setattr(TensorRtRtxRuntime, "unavailable", lambda: "there is no GPU.")
    monkeypatch.setattr(TensorRtRtxRuntime, "plan", lambda path, precision, batch: executed)
    assert said(capsys, "x.onnx", "--runtime", "tensorrt_rtx", "--precision", "int8").splitlines() == [
        "the plan of tensorrt_rtx, version 1.7, executes int8",
        "layers: 3",
        "compute_layers:",
        "  conv: int8",
        "latency not measured: there is no GPU.",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["absent.onnx", "--runtime", "onnxruntime"],
            "error: absent.onnx does not exist; run the export stage first.\n",
        ),
        (["text.onnx", "--runtime", "onnxruntime"], "error: text.onnx cannot be loaded by onnxruntime ("),
        (["text.onnx", "--runtime", "tflite"], "error: runtime 'tflite' is unknown; use one of torch, onnxruntime, "),
        (["text.onnx", "--runtime", "tensorrt"], "error: tensorrt is not installed; install it with "),
        (["text.onnx", "--runtime", "tensorrt_rtx"], "error: tensorrt_rtx is not installed; install it with "),
        (["text.onnx", "--runtime", "openvino", "--precision", "int4"], "error: precision 'int4' is unknown; use one "),
        (["row.onnx", "--runtime", "onnxruntime"], "error: row.onnx runs on no float32 images in onnxruntime ("),
    ],
)
def test_what_cannot_be_told_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    sentence: str,
) -> None:
    import onnx
    from onnx import TensorProto, helper

    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("hello world\n", encoding="utf-8")
    ends = [helper.make_tensor_value_info(name, TensorProto.INT32, [5]) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node("Abs", ["input"], ["logits"])], "row", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), "row.onnx")
    text = said(capsys, *words, expected=2)
    assert text.startswith(sentence)
    assert text.count("\n") == 1
