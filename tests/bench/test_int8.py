"""The measurement of int8 in a small form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from bench.int8 import PLAIN, SELECTIONS, STEPS, main
from pipeline.store.tables import read_json


@pytest.mark.e2e
def test_every_step_and_selection_is_measured_in_both_runtimes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    torch.manual_seed(0)
    torch.save(models.build("resnet8", 5).state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "results/int8"
    options = ["--images", str(tmp_path), "--network", "resnet8", "--checkpoint", str(tmp_path / "weights.pth")]
    timing = ["--rounds", "2", "--seconds", "0.01"]
    main([*options, "--classes", "5", "--image-size", "16", "--draws", "2", "--count", "4", "--out", str(out), *timing])
    result = read_json(out.with_suffix(".json"))
    assert list(result["steps"]) == [*PLAIN, *STEPS]
    assert list(result["selections"]) == list(SELECTIONS)
    for draws in (*result["steps"].values(), *result["selections"].values()):
        assert len(draws) == 2
        assert all(0 <= draw[name]["4 at stride 6"]["agreement"] <= 1 for draw in draws for name in draw)
    assert result["files"]["fp32"]["onnxruntime"]["16 others"]["agreement"] == 1
    assert [row["file"] for row in result["latency"][::2]] == ["fp32", "fp16", "int8, no layer in fp32", "int8"]
    assert all(row["latency_p50_ms"] > 0 and row["size_bytes"] > 0 for row in result["latency"])
    assert all(("ratio" in row) == (row["file"] != "fp32") for row in result["latency"])
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text() + "\n")
