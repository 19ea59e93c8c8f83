"""Damaged and hostile files, a few hundred for each reader; `make fuzz` has ten thousand, in processes of their own."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from bench.fuzz import __main__ as program
from bench.fuzz.judge import ACCEPTED, FAILED, REFUSED, Target, fresh, judge, sentence_problem
from bench.fuzz.readers import TARGETS
from pipeline.errors import DataError

CASES = 250


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@cache
def seeds_of(name: str, scratch: Path) -> Any:
    return TARGETS[name].seeds(scratch / name)


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence_and_leaves_nothing_behind(name: str, scratch: Path) -> None:
    target, folder = TARGETS[name], scratch / f"{name}.case"
    kinds = set()

    @seed(0)
    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(rng: random.Random) -> None:
        fresh(folder)
        target.write(rng, seeds_of(name, scratch), folder / "in")
        outcome = judge(target, seeds_of(name, scratch), folder)
        kinds.add(outcome.kind)
        assert outcome.kind != FAILED, f"{outcome.detail}\n{outcome.trace}"

    check()
    # a fuzzer whose cases all end alike has found nothing out
    assert kinds == {ACCEPTED, REFUSED}


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda folder, seeds: None, (ACCEPTED, "")),
        (lambda folder, seeds: _raise(DataError("it is wrong; mend it")), (REFUSED, "it is wrong; mend it")),
        (lambda folder, seeds: _raise(DataError("two\nlines")), (FAILED, "a message of several lines")),
        (lambda folder, seeds: _raise(DataError("\x1b[2J")), (FAILED, "a message that cannot be printed")),
        (lambda folder, seeds: _raise(DataError("x" * 2000)), (FAILED, "a message of more than 1000 characters")),
        (lambda folder, seeds: _raise(KeyError("x")), (FAILED, "KeyError")),
        (lambda folder, seeds: _raise(SystemExit(1)), (FAILED, "SystemExit")),
        (lambda folder, seeds: (folder / "in/new").touch(), (FAILED, "the folder of its input was changed")),
        (lambda folder, seeds: _leave(folder / "out/half"), (FAILED, "refused, but left half")),
    ],
)
def test_the_judge_tells_a_failure_of_each_kind(read: Any, expected: tuple[str, str], tmp_path: Path) -> None:
    fresh(tmp_path)
    outcome = judge(Target("t", "t", lambda folder: None, lambda rng, seeds, folder: None, read), None, tmp_path)
    assert outcome.kind == expected[0]
    assert outcome.detail.startswith(expected[1])


def _raise(error: BaseException) -> None:
    raise error


def _leave(path: Path) -> None:
    path.touch()
    raise DataError("it is wrong; mend it")


def test_an_empty_message_is_no_sentence() -> None:
    assert sentence_problem(" ") == "an empty message"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process ended with signal 11"),
        ("import os; os._exit(7)", "the process ended with exit code 7"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_crash_and_a_hang_of_a_case_are_named_with_its_seed_and_the_next_case_is_judged(
    body: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # stands in for the child: its second case does not end
    (tmp_path / "bench/fuzz").mkdir(parents=True)
    (tmp_path / "bench/fuzz/child.py").write_text(
        "import json, sys\nfirst, count = int(sys.argv[2]), int(sys.argv[3])\n"
        "for seed in range(first, first + count):\n"
        "    print('begin', seed, flush=True)\n"
        f"    if seed == 4:\n        {body}\n"
        "    told = {'seed': seed, 'kind': 'accepted', 'seconds': 0.1, 'detail': '', 'trace': ''}\n"
        "    print(json.dumps(told), flush=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(program, "_PATIENCE", 2)
    tally = program.fuzz("image", 3, 3)
    assert tally.cases == 3
    assert tally.counts == {ACCEPTED: 2, REFUSED: 0, FAILED: 1}
    assert [(what, found["seeds"]) for what, found in tally.failures.items()] == [(detail, [4])]
    assert f"1 times {detail} (seeds 4)" in program.table([tally])


def test_the_program_writes_what_it_prints_and_repeats_a_case_by_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results/fuzz"
    with pytest.raises(SystemExit) as ended:
        program.main(["--cases", "5", "--first", "2", "--only", "onnx", "--out", str(out)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert out.with_suffix(".md").read_text(encoding="utf-8").endswith(printed)
    (found,) = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["targets"]
    assert found["cases"] == sum(found["counts"].values()) == 5
    again = program.fuzz("onnx", 2, 5)
    assert again.counts == found["counts"]


def test_an_unknown_target_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--only", "toaster"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'toaster' is not a target; choose of params,")
