"""The cost of each stage in a small form."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import scale
from pipeline.store.json_files import read_json


@pytest.mark.e2e
def test_every_stage_is_timed_at_each_number_and_each_size_of_images(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "ROUNDS", 1)
    out = images / "results/scale"
    networks = ["--teacher", "resnet8", "--student", "resnet8", "--batch-size", "4", "--device", "cpu"]
    scale.main(["--images", str(images), *networks, "--counts", "16", "--sizes", "8", "--out", str(out)])
    result = read_json(out.with_suffix(".json"))
    assert [(row["images"], row["size"]) for row in result["rows"]] == [(16, 8), (8, 8)]
    assert all(len(row["seconds"]) == 7 and min(row["seconds"].values()) > 0 for row in result["rows"])
    assert capsys.readouterr().out.endswith(out.with_suffix(".md").read_text() + "\n")
