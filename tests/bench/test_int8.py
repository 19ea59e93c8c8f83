"""The measurement of int8 in a small form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import models
from bench.int8 import OURS, QUANTIZE_STATIC, SELECTIONS, STEPS, main
from pipeline.store.json_files import read_json

SMALL = ["--network", "resnet8", "--image-size", "8", "--draws", "1", "--rounds", "1", "--seconds", "0.01"]


def measured(images: Path, *options: str) -> dict[str, Any]:
    out = images / "results/int8"
    main(["--images", str(images), *SMALL, "--count", "12", "--out", str(out), *options])
    return read_json(out.with_suffix(".json"))


@pytest.mark.e2e
def test_every_file_is_measured_in_both_runtimes(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(models.build("resnet8", 2).state_dict(), images / "weights.pth")
    result = measured(images, "--checkpoint", str(images / "weights.pth"), "--parts")
    peers = [name for name in result["answers"] if name != "NNCF"]
    assert peers == ["fp32", "fp16", *QUANTIZE_STATIC, *STEPS, *(f"ours, {name} images" for name in SELECTIONS)]
    for (draw,) in result["answers"].values():
        assert all(0 <= found["agreement"] <= 1 for found in draw.values())
        assert all(found["change"]["low"] <= found["change"]["value"] for found in draw.values())
    assert result["answers"]["fp32"][0]["onnxruntime"]["agreement"] == 1
    timed = ["fp32", "fp16", *QUANTIZE_STATIC, OURS]
    assert [row["file"] for row in result["latency"] if row["runtime"] == "onnxruntime"] == timed
    assert all(row["latency_p50_ms"] > 0 and row["size_bytes"] > 0 for row in result["latency"])
    assert capsys.readouterr().out.endswith((images / "results/int8.md").read_text() + "\n")


@pytest.mark.e2e
def test_random_weights_have_a_latency_and_no_accuracy(images: Path) -> None:
    result = measured(images, "--calibration", "8")
    assert result["top1"] is None
    assert {row["file"] for row in result["latency"]} >= {"fp32", OURS}
    assert "same answers" in (images / "results/int8.md").read_text().lower()
