"""Progress on terminals of any width, and as lines where there is no terminal."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from pipeline.training.card import EpochRecord
from stages import progress
from stages.curves import Curves
from stages.progress import Bar, counted

FACTS = ("val 91.20%, best 91.50% in epoch 40", "epoch 41, loss 0.312")


@pytest.fixture
def kept(monkeypatch) -> list[str]:
    """Lines in the log of the stage alone."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "keep", lines.append)
    return lines


class Terminal:
    def __init__(self, columns: int) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")

    def drawn(self) -> list[str]:
        self.stream.close()
        found = b""
        while True:
            try:
                found += os.read(self._ours, 65536)
            except OSError:  # the end of a terminal
                return found.decode().replace("\r\n", "\r").split("\r")

    def close(self) -> None:
        os.close(self._ours)


@pytest.fixture
def terminal(monkeypatch) -> Iterator:
    with ExitStack() as opened:

        def make(columns: int, kind: str = "xterm") -> Terminal:
            made = Terminal(columns)
            opened.callback(made.close)
            monkeypatch.setattr(sys, "stderr", made.stream)
            monkeypatch.setenv("TERM", kind)
            return made

        yield make


def train(steps: int = 10) -> None:
    with Bar("teacher", "image", 10 * steps) as bar:
        for _ in range(steps):
            bar.update(10)
            bar.tell(*FACTS)


def test_without_a_terminal_there_is_one_line_at_the_end(capsys):
    train()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"teacher 100% in 00:00, {FACTS[0]}, ")
    assert line.endswith(f" images/s, {FACTS[1]}")


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    train(steps=4)
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert [line.split("%")[0] for line in lines[1:]] == ["teacher  25", "teacher  50", "teacher  75", "teacher 100"]
    assert " left, val 91.20%" in lines[2]
    assert "\r" not in said


@pytest.mark.parametrize(("columns", "kind"), [(0, "xterm"), (80, "dumb")])
def test_a_terminal_that_cannot_draw_a_bar_gets_lines(terminal, columns, kind):
    opened = terminal(columns, kind)
    train()
    first, *rest = opened.drawn()
    assert first.startswith("teacher 100% in 00:00, val 91.20%")
    assert rest == [""]


def test_a_narrow_terminal_shows_what_matters_most_in_one_line_and_all_at_the_end(terminal, monkeypatch, kept):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    opened = terminal(40)
    train()
    *drawn, last, end = [text for text in opened.drawn() if text.strip() or text == ""][-30:]
    bars = [text for text in drawn if text.strip()]
    assert bars
    assert all(len(text) <= 40 for text in bars)
    assert any(text.startswith("teacher  50% 00:00 left, val 91.20%") for text in bars)
    assert last.endswith(FACTS[1])
    assert end == ""
    assert kept[5].startswith("teacher  50% 00:00 left, val 91.20%, best 91.50% in epoch 40, ")


def test_a_total_that_is_not_known_yet(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with counted("benchmark", "step") as on_progress:
        on_progress(0, 0, "verifying the bundle")
        on_progress(0, 2, "round 1/2")
        on_progress(1, 2, "round 2/2")
    said = capsys.readouterr().err
    assert "benchmark 00:00, verifying the bundle\n" in said
    assert "benchmark  50% 00:00 left, round 2/2, " in said


def test_the_wait_for_a_device_says_nothing_about_the_time_that_is_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with counted("benchmark", "step") as on_progress:
        for seconds, done in ((0, 0), (600, 1), (610, 2), (620, 3)):
            clock[0] = seconds
            on_progress(done, 4 if done else 0, "step")
    assert "benchmark  75% 00:10 left, step, " in capsys.readouterr().err


def test_steps_that_were_done_before_it_began_to_watch_say_nothing_about_the_time_that_is_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with counted("benchmark", "step") as on_progress:
        for seconds, done in ((0, 6), (10, 7)):
            clock[0] = seconds
            on_progress(done, 10, "step")
    assert "benchmark  70% 00:30 left, step, 0.10 steps/s\n" in capsys.readouterr().err


def test_work_that_ends_early_is_told_once(capsys, monkeypatch):
    with Bar("export", "file", 3) as bar:
        bar.update(1)
        monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
        bar._next_line = 0.0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_process_that_is_not_shown_says_nothing(capsys):
    with Bar("student", "image", 3, shown=False) as bar:
        bar.update(3)
        bar.tell(*FACTS)
        bar.restart()
    assert capsys.readouterr().err == ""


def test_restored_epochs_say_nothing_about_the_time_that_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Bar("teacher", "image", 1000) as bar:
        curves = Curves(tmp_path, ExitStack(), bar)
        curves.live = SimpleNamespace(log_metric=lambda name, value: None, next_step=lambda: None)
        for epoch, seconds in ((0, 600.0), (1, 600.0), (2, 0.0)):
            bar.update(250)
            curves.add(EpochRecord(epoch, 0.5, (0.6, 0.8, 0.7)[epoch], 0.1, seconds))
    restored, trained = capsys.readouterr().err.splitlines()[-3:-1]
    assert restored == "teacher  50% ? left, val 80.00%, best 80.00% in epoch 2, epoch 2, loss 0.500"
    assert trained.startswith("teacher  75% 00:00 left, val 70.00%, best 80.00% in epoch 2, ")
