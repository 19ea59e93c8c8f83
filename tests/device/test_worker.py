from __future__ import annotations

import gc
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device import worker
from pipeline.device.worker import EXIT_FAILED, EXIT_MODEL_FILE, EXIT_UNAVAILABLE, make_batches, measure
from tests.device.conftest import TinyModel

BATCH = [np.zeros((1, 3, 8, 8), dtype=np.float32)]


@pytest.fixture
def job(tiny_model: TinyModel, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "runtime": "onnxruntime",
        "path": str(tiny_model.path),
        "precision": "fp32",
        "batch": 2,
        "device": "cpu",
        "threads": 1,
        "inputs": str(tiny_model.inputs),
        "warmup_seconds": 0.0,
        "warmup_count": 3,
        "min_seconds": 0.0,
        "min_count": 20,
        "max_seconds": 5.0,
        "output": str(tmp_path / "result.json"),
    }


def run_main(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    return worker.main()


def test_measuring_needs_both_the_count_and_the_seconds() -> None:
    slow, cut = measure(lambda batch: time.sleep(0.01), BATCH, min_seconds=0.0, min_count=5, max_seconds=5.0)
    assert (len(slow), cut) == (5, False)
    assert all(sample >= 9_000_000 for sample in slow)
    fast, cut = measure(lambda batch: None, BATCH, min_seconds=0.05, min_count=1, max_seconds=5.0)
    assert (len(fast) > 100, cut) == (True, False)


def test_measuring_stops_at_the_hard_maximum() -> None:
    samples, cut = measure(lambda batch: time.sleep(0.01), BATCH, min_seconds=0.0, min_count=1000, max_seconds=0.05)
    assert cut
    assert 1 <= len(samples) <= 6


def test_the_garbage_collector_rests_and_comes_back() -> None:
    states: list[bool] = []
    measure(lambda batch: states.append(gc.isenabled()), BATCH, min_seconds=0, min_count=2, max_seconds=1)
    assert states == [False, False]
    assert gc.isenabled()


def test_measuring_cycles_through_the_batches() -> None:
    seen: list[int] = []
    batches = [np.full((1, 3, 2, 2), value, dtype=np.float32) for value in range(3)]
    measure(lambda batch: seen.append(int(batch[0, 0, 0, 0])), batches, min_seconds=0, min_count=7, max_seconds=1)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(("images", "size", "count"), [(6, 2, 3), (5, 2, 3), (2, 8, 1)])
def test_batches_use_all_images_and_have_the_size_asked_for(images: int, size: int, count: int) -> None:
    values = np.arange(images, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 3, 2, 2), dtype=np.float32)
    batches = make_batches(values, size)
    assert [batch.shape for batch in batches] == [(size, 3, 2, 2)] * count
    assert {int(value) for batch in batches for value in batch[:, 0, 0, 0]} == set(range(images))
    assert all(batch.flags.c_contiguous for batch in batches)


@pytest.mark.parametrize("images", [np.zeros((4, 3, 2, 2)), np.zeros((4, 3), np.float32), np.zeros((0, 3, 2, 2), "f4")])
def test_inputs_that_are_no_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="inputs must be float32"):
        make_batches(images, 1)


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
