"""The comparison with others' measurements in a small form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.agreement import APP, BARE, OURS_ONNXRUNTIME, OURS_OPENVINO, main
from pipeline.store.json_files import read_json


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments that name one tiny network as .xml and as .onnx."""
    import openvino

    weights = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weights"], ["maps"]), helper.make_node("Flatten", ["maps"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    openvino.save_model(openvino.convert_model(path), tmp_path / "tiny.xml", compress_to_fp16=False)
    return ["--model", str(tmp_path / "tiny.xml"), "--onnx", str(path)]


@pytest.mark.e2e
def test_all_four_are_measured_with_the_same_settings(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results/agreement"
    main([*files, "--rounds", "1", "--seconds", "0.1", "--threads", "1", "--out", str(out)])
    result = read_json(out.with_suffix(".json"))
    assert set(result["milliseconds"]) == {OURS_OPENVINO, APP, OURS_ONNXRUNTIME, BARE}
    assert all(len(values) == 1 and min(values) > 0 for values in result["milliseconds"].values())
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in result["ratios"])
    assert all(len(row["microseconds"]) == 1 for row in result["overhead"])
    settings = result["benchmark_app_settings"]
    assert (settings["PERFORMANCE_HINT"], settings["INFERENCE_NUM_THREADS"]) == ("LATENCY", "1")
    assert "float32" in settings["INFERENCE_PRECISION_HINT"]
    assert result["executed"]["openvino"]["precision"] == "fp32"
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text() + "\n")


def test_a_model_that_is_none_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.xml").write_text("no model")
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(tmp_path / "x.xml"), "--onnx", str(tmp_path / "x.onnx"), "--rounds", "1"])
    assert ended.value.code == 2
    assert "cannot be read by openvino" in capsys.readouterr().err
