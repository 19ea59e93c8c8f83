from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.device.benchmark import worker
from pipeline.device.benchmark.worker import EXIT_FAILED, EXIT_MODEL_FILE, EXIT_UNAVAILABLE


def run_main(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    return worker.main()


def test_a_round_is_written_whole(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(job, monkeypatch) == 0
    output = Path(job["output"])
    result = json.loads(output.read_text(encoding="utf-8"))
    assert len(result["samples_ns"]) == 20
    assert all(isinstance(sample, int) and sample > 0 for sample in result["samples_ns"])
    assert (result["warmup_count"], result["cut_short"]) == (3, False)
    assert result["executed"]["precision"] == "fp32"
    assert result["executed"]["threads"] == 1
    assert min(result["load_ms"], result["first_inference_ms"], result["peak_rss_kb"]) > 0
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]


def test_without_an_output_path_the_result_goes_to_standard_output(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job["output"] = None
    assert run_main(job, monkeypatch) == 0
    assert len(json.loads(capsys.readouterr().out)["samples_ns"]) == 20


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"runtime": "tflite"}, EXIT_UNAVAILABLE, "'tflite' is unknown"),
        ({"path": "absent.onnx"}, EXIT_MODEL_FILE, "absent.onnx does not exist"),
        ({"precision": "int3"}, EXIT_MODEL_FILE, "'int3' is unknown"),
        ({"inputs": "absent.npy"}, EXIT_FAILED, "absent.npy"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    job: dict[str, Any],
    changes: dict[str, str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main({**job, **changes}, monkeypatch) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not Path(job["output"]).exists()
