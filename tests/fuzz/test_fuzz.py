"""Damaged and hostile files, a few dozen for each reader; `make fuzz` has ten thousand, in processes of their own."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.common import _MATRIX_SIDE
from pipeline.errors import DataError
from tests.conftest import ROOT
from tests.fuzz import __main__ as program
from tests.fuzz.cases import ACCEPTED, FAILED, REFUSED
from tests.fuzz.judge import Target, judge, sentence_problem
from tests.fuzz.targets import TARGETS, judge_seed

CASES = 45


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    valid, case = TARGETS[name].valid(tmp_path / "valid"), tmp_path / "case"
    for files in valid:
        whole = judge(TARGETS[name], files, case)
        assert whole.kind == ACCEPTED, f"{whole.detail}\n{whole.trace}"
    kinds = set()
    for seed in range(CASES):
        outcome = judge_seed(name, seed, valid, case)
        kinds.add(outcome.kind)
        assert outcome.kind != FAILED, f"seed {seed}: {outcome.detail}\n{outcome.trace}"
    # a fuzzer whose cases all end alike has found nothing out
    assert kinds == {ACCEPTED, REFUSED}


def _raise(error: BaseException) -> None:
    raise error


def _leave(path: Path) -> None:
    path.touch()
    raise DataError("it is wrong; mend it")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda folder, out: None, (ACCEPTED, "")),
        (lambda folder, out: _raise(DataError("it is wrong; mend it")), (REFUSED, "it is wrong; mend it")),
        (lambda folder, out: _raise(DataError("two\nlines")), (FAILED, "a message of several lines")),
        (lambda folder, out: _raise(DataError("\x1b[2J")), (FAILED, "a message that cannot be printed")),
        (lambda folder, out: _raise(DataError("x" * 2000)), (FAILED, "a message of more than 1000 characters")),
        (lambda folder, out: _raise(KeyError("x")), (FAILED, "KeyError")),
        (lambda folder, out: _raise(SystemExit(1)), (FAILED, "SystemExit")),
        (lambda folder, out: (folder / "new").touch(), (FAILED, "the folder of its input was changed")),
        (lambda folder, out: _leave(out / "half"), (FAILED, "refused, but left ['half']")),
    ],
)
def test_the_judge_tells_a_failure_of_each_kind(read: Any, expected: tuple[str, str], tmp_path: Path) -> None:
    outcome = judge(Target("t", lambda folder: None, read, lambda files, rng: files), {}, tmp_path)
    assert outcome.kind == expected[0]
    assert outcome.detail.startswith(expected[1])


def test_an_empty_message_is_no_sentence() -> None:
    assert sentence_problem(" ") == "an empty message"


def test_crashes_and_hangs_are_named_with_their_seeds_and_the_next_case_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # stands in for the child
    (tmp_path / "child.py").write_text(f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.fuzz import cases

cases.HANG_SECONDS = 0.2
ends = {{4: lambda: os.kill(os.getpid(), signal.SIGSEGV), 5: lambda: os._exit(7), 6: lambda: time.sleep(60)}}

def judged(seed):
    ends.get(seed, lambda: None)()
    while seed == 7:
        pass
    return cases.Outcome("accepted", 0.1)

cases.tell_cases(judged, int(sys.argv[2]), int(sys.argv[3]))
""")
    monkeypatch.setattr(program, "CHILD", [sys.executable, str(tmp_path / "child.py")])
    tally = program.fuzz("image", 3, 6)
    assert tally.cases == 6
    assert tally.counts == {ACCEPTED: 2, REFUSED: 0, FAILED: 4}
    assert {detail: found["seeds"] for detail, found in tally.failures.items()} == {
        "the process ended with signal 11": [4],
        "the process ended with exit code 7": [5],
        "no answer within 10 s": [6, 7],
    }
    assert "2 times no answer within 10 s (seeds 6, 7)" in program.tally_table([vars(tally)])


def test_the_program_writes_what_it_prints_and_repeats_a_case_by_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_MATRIX_SIDE, "cpu", 64)
    out = tmp_path / "results/fuzz"
    with pytest.raises(SystemExit) as ended:
        program.main(["--cases", "5", "--first", "2", "--only", "image", "--out", str(out)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == out.with_suffix(".md").read_text(encoding="utf-8") + "\n"
    (found,) = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["targets"]
    assert found["cases"] == sum(found["counts"].values()) == 5
    valid = TARGETS["image"].valid(tmp_path / "valid")
    again = Counter(judge_seed("image", seed, valid, tmp_path / "case").kind for seed in range(2, 7))
    assert again == Counter(found["counts"])


def test_an_unknown_target_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--only", "toaster"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'toaster' is not a target; choose from params,")
