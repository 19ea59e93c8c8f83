"""Each measurement for a GPU in its smallest form, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import models
from bench.gpu import runs
from bench.gpu.__main__ import ITEMS, STOPPED, main
from bench.gpu.call import Call, TimeUp
from bench.gpu.studies import PAIRS, of_pair
from pipeline.ablation.study import load_study
from pipeline.artifacts import read_json
from pipeline.weights import check_runs
from tests.conftest import ROOT

IN_PARTS = ("speed", "scoring", "latency", "packing")
STUDIES = tuple(name for name in ITEMS if name not in IN_PARTS)
# what a machine that is lent for this has not
ABSENT = ("dvc", "dvclive", "openvino")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state for all, as they are used: studies share a teacher."""
    return tmp_path_factory.mktemp("gpu") / "state"


def stopped(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == STOPPED == 75


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.e2e
@pytest.mark.parametrize("item", IN_PARTS)
def test_finished_parts_are_kept_and_a_call_without_time_stops_at_the_next(
    item: str, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (item, "--quick", "--state", str(state))
    stopped(*command, "--minutes", "0")
    assert f"the time is up at: {'resnet8' if item == 'latency' else ''}" in capsys.readouterr().out
    main([*command, "--out", str(tmp_path / "results/it")])
    printed = capsys.readouterr().out
    assert len(table_rows(printed)) > 3
    assert printed.endswith((tmp_path / "results/it.md").read_text(encoding="utf-8") + "\n")
    assert read_json(tmp_path / "results/it.json")["machines"][0]["gpu"] is None

    main([*command, "--minutes", "0"])
    assert table_rows(capsys.readouterr().out) == table_rows(printed)
    (folder,) = state.glob(f"{item}-quick-*/")
    part = sorted(folder.iterdir())[-1]
    part.unlink()
    stopped(*command, "--minutes", "0")
    assert f"the time is up at: {part.stem}; the same command goes on" in capsys.readouterr().out


@pytest.mark.e2e
@pytest.mark.parametrize("item", STUDIES)
def test_a_study_that_was_stopped_goes_on_to_its_table_and_does_no_run_twice(
    item: str, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (item, "--quick", "--seeds", "1", "--state", str(state))
    stopped(*command, "--minutes", "0")
    checks = []

    def after_a_few(call: Call, following: str) -> None:
        checks.append(following)
        if len(checks) == 9:
            raise TimeUp(following)

    with monkeypatch.context() as patched:
        patched.setattr(Call, "check", after_a_few)
        stopped(*command)
    assert "runs finished; the same command goes on" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (state / "studies/runs").iterdir()}
    assert before

    main([*command, "--out", str(tmp_path / "results/it")])
    assert len(table_rows(capsys.readouterr().out)) > 3
    assert list((tmp_path / "results").glob("it*.json"))
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_a_test_that_fails_on_the_gpu_does_not_cost_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed() -> str:
        raise runs.TestsFailedError("1 failed, 7 passed in 3 s")

    monkeypatch.setattr(runs, "_objectives", lambda call: ("losses", []))
    monkeypatch.setattr(runs, "_precision", lambda call: ("students", {}))
    monkeypatch.setattr(runs, "_tests", failed)
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--state", str(tmp_path / "state"), "--out", str(tmp_path / "it")])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "Tests that need a GPU: 1 failed, 7 passed in 3 s." in printed.out
    assert "error: tests that need a GPU failed (1 failed, 7 passed in 3 s)" in printed.err
    assert read_json(tmp_path / "it.json")["figures"]["tests"] == "1 failed, 7 passed in 3 s"
    assert not list((tmp_path / "state").glob("runs-*/*.json"))


def test_packages_that_a_lent_machine_lacks_are_not_needed(tmp_path: Path) -> None:
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n", encoding="utf-8")
    command = [sys.executable, "-m", "bench.gpu", "runs", "--quick", "--minutes", "0", "--state", str(tmp_path)]
    without = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == STOPPED, done.stderr
    assert done.stdout.startswith("the time is up at: gpu_objectives, data")


@pytest.mark.parametrize("pair", PAIRS)
def test_the_published_pairs_are_networks_that_there_are(pair: str) -> None:
    study = of_pair(load_study(ROOT / "ablations/tiny64.yaml", ROOT / "params.yaml"), pair)
    for params in study.arms.values():
        assert f"{params.teacher.network} to {params.distill.network}" == pair
        for network in (params.teacher.network, params.distill.network):
            check_runs(models.build(network, 200), "network", 200, params.data.image_size)
        assert params.distill.training.learning_rate == (0.01 if "Shuffle" in pair else 0.05)


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["direction", "--data", str(tmp_path / "none"), "--state", str(tmp_path)])
    assert ended.value.code == 2
    assert "none is not a folder; set it to the folder" in capsys.readouterr().err
