"""The measurement of int8 in a small form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from bench.int8 import QUANTIZE_STATIC, SELECTIONS, SHIPPED, STEPS, main
from pipeline.store.json_files import read_json


@pytest.mark.e2e
def test_every_step_and_selection_is_measured_in_both_runtimes(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(models.build("resnet8", 5).state_dict(), images / "weights.pth")
    out = images / "results/int8"
    options = ["--images", str(images), "--network", "resnet8", "--checkpoint", str(images / "weights.pth")]
    timing = ["--rounds", "1", "--seconds", "0.01"]
    main([*options, "--classes", "5", "--image-size", "8", "--draws", "1", "--count", "4", "--out", str(out), *timing])
    result = read_json(out.with_suffix(".json"))
    assert [name for name in result["steps"] if name != "NNCF"] == [*QUANTIZE_STATIC, *STEPS]
    assert list(result["selections"]) == list(SELECTIONS)
    for draws in (*result["steps"].values(), *result["selections"].values()):
        assert len(draws) == 1
        assert all(0 <= draw[name]["4 at stride 6"]["agreement"] <= 1 for draw in draws for name in draw)
    assert result["files"]["fp32"]["onnxruntime"]["16 others"]["agreement"] == 1
    timed = ["fp32", "fp16", *QUANTIZE_STATIC, SHIPPED]
    assert [row["file"] for row in result["latency"] if row["runtime"] == "onnxruntime"] == timed
    assert all(row["latency_p50_ms"] > 0 and row["size_bytes"] > 0 for row in result["latency"])
    assert all(("ratio" in row) == (row["file"] != "fp32") for row in result["latency"])
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text() + "\n")
