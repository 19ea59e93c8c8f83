"""What else stops a `dvc repro`: a second one, and files of dvc itself that a kill has cut short."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.torture.clone import MEASURED
from bench.torture.kill import STAGES, Undisturbed
from bench.torture.repro import Repro, check


@dataclass(frozen=True)
class Outcome:
    """Of one check: whether it passed, and what was seen, in a few words."""

    name: str
    passed: bool
    seen: str


def second_repro(folder: Path, expected: Undisturbed) -> Outcome:
    """A second `dvc repro` while the first one trains."""
    shutil.copytree(expected.folder, folder, symlinks=True)
    first = Repro(folder, "--force", "--single-item", "train_teacher")
    while not (first.begun or first.ended):
        time.sleep(0.01)
    second = Repro(folder, "train_teacher")
    code = second.wait()
    named = f"(PID {first.process.pid})" in second.output
    ended_well = first.wait() == 0 and not expected.differing(folder, "train_teacher")
    seen = "the second is refused and names the process of the first" if named else second.output.strip()[-200:]
    return Outcome("two `dvc repro` at once", code != 0 and named and ended_well, seen.replace("\n", " "))


def _cut(name: str, path: str) -> Callable[[Path, Undisturbed], Outcome]:
    def cut(folder: Path, expected: Undisturbed) -> Outcome:
        shutil.copytree(expected.folder, folder, symlinks=True)
        file = folder / path
        content = file.read_bytes() if file.exists() else b'{"write": {}, "read": {}}'
        file.write_bytes(content[: len(content) // 2])
        before = check(folder)
        repro = Repro(folder)
        code = repro.wait()
        same = not any(expected.differing(folder, stage) for stage in STAGES if stage not in MEASURED)
        seen = f"mended by `make repro`, which ran {', '.join(stage for stage, _ in repro.begun) or 'nothing'} again"
        if before.returncode or code:
            seen = (before.stderr + repro.output).strip()[-200:]
        return Outcome(f"{name} cut short", not before.returncode and code == 0 and same, seen.replace("\n", " "))

    return cut


CHECKS: tuple[Callable[[Path, Undisturbed], Outcome], ...] = (
    second_repro,
    _cut("dvc.lock", "dvc.lock"),
    _cut("dvc's list of users of files", ".dvc/tmp/rwlock"),
)
