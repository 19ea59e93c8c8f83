"""One call of a measurement: how long it may take, what earlier calls have finished, and what it leaves behind."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.setting import ROOT
from pipeline.ablation.upstream import key_of
from pipeline.artifacts import read_json, write_json
from pipeline.atomic import atomic_file
from pipeline.checkpoint import code_hash


class TimeUp(Exception):  # noqa: N818  no error: it says what comes next
    """The time of this call is up; the text says what would have come next."""


@dataclass(frozen=True)
class Call:
    """What the command line asks for.

    Attributes:
        item: name of the measurement.
        state: folder of finished parts and studies.
        data: folder of images; None for those that the measurement names.
        out: name of the result, to which .md and .json are appended; None to write none.
        device: where to compute.
        jobs: runs of a study at the same time.
        seeds: of a study, the first so many; None for all.
        quick: tiny networks on few images, for a proof that it runs.
        ends: when to stop, on time.monotonic's clock.
        command: what was typed.
    """

    item: str
    state: Path
    data: Path | None
    out: Path | None
    device: torch.device
    jobs: int
    seeds: int | None
    quick: bool
    ends: float
    command: str

    def check(self, following: str) -> None:
        """Stop here if the time is up.

        Raises:
            TimeUp: it is.
        """
        if time.monotonic() >= self.ends:
            raise TimeUp(following)

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` returns, JSON-like; of an earlier call, if one of the same code and kind has finished it."""
        # other code, another kind of device or other images would be other figures in the same table
        folder = f"{self.name}-{key_of(code_hash(), self.device.type, str(self.data))}"
        path = self.state / folder / f"{name}.json"
        if not path.exists():
            self.check(name)
            print(f"{self.item}: {name}", flush=True)
            with self.computing():
                figures = work()
            write_json(path, figures)
        return read_json(path)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Take note of the machine that something is computed on, unless an earlier call did."""
        before = machine.load()
        try:
            yield
        finally:
            known, found = self.machines(), _facts(self.device)
            named = ("gpu", "cpu", "cores", "torch", "python")
            if all(any(found[key] != other[key] for key in named) for other in known):
                loads = {"load_before": before, "load_after": machine.load()}
                write_json(self._machines, [*known, found | loads])

    def machines(self) -> list[dict[str, Any]]:
        """Where calls of this measurement with this state have computed something."""
        return list(read_json(self._machines)) if self._machines.exists() else []

    def origin(self) -> str:
        """Where and by which code it was measured, as the last lines of a report."""
        machines = [machine.described(found) for found in self.machines()]
        return "\n\n".join([*machines, f"Code {code_hash()[:12]}, commit {_commit()}.", f"    {self.command}"])

    def report(self, title: str, body: str, figures: Any) -> str:
        """The text of a finished measurement, written beside its figures if that was asked for."""
        text = f"# {title}\n\n{body}\n\n{self.origin()}\n"
        if self.out is not None:
            content = {"schema": 1, "command": self.command, "machines": self.machines(), "figures": figures}
            write_json(self.out.with_name(f"{self.out.name}.json"), content)
            with atomic_file(self.out.with_name(f"{self.out.name}.md")) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return text

    @property
    def name(self) -> str:
        """Of the measurement in its full or quick form."""
        return f"{self.item}-quick" if self.quick else self.item

    @property
    def _machines(self) -> Path:
        return self.state / f"{self.name}-machines.json"


@cache
def _facts(device: torch.device) -> dict[str, Any]:
    """Measured once a process: the matrix products in it take seconds."""
    return machine.facts(device)


def _commit() -> str:
    """The commit of the checkout; a copy of its files alone has none."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not known"
