"""Kills stages, dvc, or both at random moments, lets `dvc repro` finish, and compares with an undisturbed run."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from tests.torture.clone import MEASURED, SMALL, STAGES, clone, hashes, names
from tests.torture.repro import Repro, alive, belongs, check

VICTIMS = ("stage", "dvc", "group")
_ATTEMPTS = 3  # to hit a stage that ended before its moment, each time earlier
_NAMED = re.compile(r"process (\d+) is already running stage \w+(?: of \S+)? here, left behind by a dvc")


@dataclass(frozen=True)
class Moment:
    """When to kill what: ``share`` of the stage's duration in the undisturbed run, 0 to 1."""

    stage: str
    victim: str
    share: float


@dataclass
class Kill:
    """The outcome of a kill.

    Attributes:
        stage, after_seconds: the stage that was running, and for how long.
        victim: what was killed: stage, dvc or group.
        orphan: what became of a stage that lived on; "" if none did.
        recovered: `dvc repro`, again and again, came to its end.
        repaired: not before `make repro` had repaired files of dvc.
        identical: the stage's outputs are those of the undisturbed run; None where they hold times.
    """

    stage: str
    victim: str
    share: float
    after_seconds: float
    orphan: str = ""
    recovered: bool = False
    repaired: bool = False
    identical: bool | None = None


@dataclass(frozen=True)
class Undisturbed:
    """A run that was let alone: how long each stage took with what dvc did for it, and what it wrote.

    Attributes:
        values: of its params.yaml.
        targets: of its `dvc repro`; the whole pipeline if there is none.
    """

    folder: Path
    values: Mapping[str, object]
    targets: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def comparable(self) -> list[str]:
        """Its stages whose outputs hold no times."""
        return [stage for stage in self.seconds if stage not in MEASURED]

    def differing(self, other: Path, stage: str) -> list[str]:
        """Files of a stage that the other run lacks, has in addition or has with other bytes."""
        ours, theirs = hashes(self.folder, stage), hashes(other, stage)
        return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def moments(count: int, seed: int) -> list[Moment]:
    """Stages in turn, so that each is hit; each by another victim in the next turn; the moment is drawn."""
    draw = random.Random(seed)
    return [
        Moment(STAGES[i % len(STAGES)], VICTIMS[(i % len(STAGES) + i // len(STAGES)) % len(VICTIMS)], draw.random())
        for i in range(count)
    ]


def undisturbed(folder: Path, values: Mapping[str, object] = SMALL, *targets: str) -> Undisturbed:
    """Run the pipeline once, up to ``targets`` if there are any.

    Raises:
        RuntimeError: it failed, so there is nothing to compare with.
    """
    repro = Repro(clone(folder, values), *targets)
    if repro.wait() != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{repro.output}")
    marks = [*repro.begun, ("", time.monotonic())]
    seconds = {stage: later - start for (stage, start), (_, later) in pairwise(marks)}
    return Undisturbed(folder, values, targets, seconds)


class Pass:
    """One run through the pipeline in which each stage is killed once at most."""

    def __init__(
        self, folder: Path, planned: Sequence[Moment], expected: Undisturbed, on_kill: Callable[[Kill], object]
    ) -> None:
        self._folder = folder
        self._pending = {moment.stage: moment for moment in planned}
        self._expected = expected
        self._on_kill = on_kill
        self._missed = dict.fromkeys(self._pending, 0)
        self._orphan: psutil.Process | None = None
        self.kills: list[Kill] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Run, kill and run again until `dvc repro` comes to its end; then compare."""
        clone(self._folder, self._expected.values)
        arguments = self._expected.targets
        while True:
            repro = Repro(self._folder, *arguments)
            killed, arguments = self._kill_in_time(repro), self._expected.targets
            if killed:
                continue
            code = repro.wait()
            self._settle_orphan(repro.output)
            if code != 0 and not self._is_of_orphan(repro.output) and not self._is_repaired():
                self.problems.append(f"`dvc repro` did not recover:\n{repro.output[-3000:]}")
                return
            if code == 0 and self._orphan is not None:
                self.problems.append(f"process {self._orphan.pid} of a killed dvc still runs and was not noticed")
                return
            if code == 0 and not self._pending:
                break
            if code == 0:
                stage = next(iter(self._pending))
                self._missed[stage] += 1
                if self._missed[stage] > _ATTEMPTS:
                    self.problems.append(f"{stage} ended before its moment, {_ATTEMPTS} times")
                    return
                arguments = ("--force", "--single-item", stage)
        check(self._folder)  # what dvc took from its cache has no next writer who would remove leftovers of it
        for kill in self.kills:
            kill.recovered = True
        self._compare()

    def _kill_in_time(self, repro: Repro) -> bool:
        """Wait for a pending moment and kill; False if dvc ended before any."""
        while not repro.ended:
            stage, start = repro.begun[-1] if repro.begun else ("", 0.0)
            passed, moment = time.monotonic() - start, self._pending.get(stage)
            # less after each miss, for a machine that is quicker now than in the undisturbed run
            if (
                moment is not None
                and passed >= moment.share * self._expected.seconds[stage] * 0.7 ** self._missed[stage]
            ):
                self._settle_orphan("")
                victim, self._orphan = repro.kill(moment.victim)
                self.kills.append(Kill(stage, victim, moment.share, passed, "lives on" if self._orphan else ""))
                del self._pending[stage]
                self._on_kill(self.kills[-1])
                return True
            time.sleep(0.002)
        return False

    def _settle_orphan(self, output: str) -> None:
        """Take note of an orphan that came to its end."""
        if self._orphan is not None and not alive(self._orphan) and not _NAMED.search(output):
            self.kills[-1].orphan = "ended by itself"
            self._orphan = None

    def _is_of_orphan(self, output: str) -> bool:
        """Whether dvc failed since a stage lives on, and its sentence names that process; which is then ended."""
        found = _NAMED.search(output)
        if found is None or self._orphan is None or not belongs(int(found[1]), self._orphan):
            return False
        self.kills[-1].orphan = "named, then stopped"
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int(found[1])).terminate()
        deadline = time.monotonic() + 60
        while alive(self._orphan) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._orphan = None
        return True

    def _is_repaired(self) -> bool:
        """Whether dvc failed since a kill cut its own files short, which `make repro` finds and repairs."""
        if not self.kills or self.kills[-1].repaired:
            return False
        self.kills[-1].repaired = "cut short" in check(self._folder).stderr
        return self.kills[-1].repaired

    def _compare(self) -> None:
        for stage in self._expected.comparable:
            differing = self._expected.differing(self._folder, stage)
            for kill in self.kills:
                if kill.stage == stage:
                    kill.identical = not differing
            if differing:
                self.problems.append(f"{stage}: other bytes than in the undisturbed run: {', '.join(differing)}")
        if left := sorted(names(self._folder) - names(self._expected.folder)):
            self.problems.append(f"left behind by a killed process: {', '.join(left)}")
