"""The whole benchmark in its smallest form."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.arms import ARMS, COMPARISONS
from pipeline.store.json_files import read_json


@pytest.mark.e2e
def test_quick_form_measures_every_arm_and_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # code for C takes half a minute
    out = tmp_path / "results/bench"
    main(["--quick", "--rounds", "1", "--device", "cpu", "--out", str(out)])

    result = read_json(out.with_suffix(".json"))
    samples = result["images_per_second"]
    assert list(samples) == list(ARMS)
    assert all(len(rates) == result["rounds"] and min(rates) > 0 for rates in samples.values())
    assert [row["name"] for row in result["ratios"]] == [comparison.name for comparison in COMPARISONS]
    for row in result["ratios"]:
        parts = [statistics.median(samples[row[part]]) for part in ("numerator", "denominator")]
        assert row["ratio"] == pytest.approx(parts[0] / parts[1])
        assert row["lowest"] <= row["ratio"] <= row["highest"]
    assert sum(row["met"] is not None for row in result["ratios"]) == 6
    assert list(result["memory_mib"]) == ["ours"]
    assert all(found["peak"] >= found["imported"] > 0 for found in result["memory_mib"].values())

    report = out.with_suffix(".md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert printed.endswith(report + "\n")
    assert "these are digits" in printed
    for row in result["ratios"]:
        assert f" {row['ratio']:.3f} |" in next(line for line in report.splitlines() if row["name"] in line)
    assert result["machine"]["cpu"] in report
    assert result["command"] in report


def test_folder_without_classes_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--quick", "--device", "cpu", "--images", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"{tmp_path} has no folder train/; put the images there" in capsys.readouterr().err
