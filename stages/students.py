"""What students that were taken out of params.yaml leave behind."""

import logging
import shutil
from collections.abc import Collection
from contextlib import ExitStack

from pipeline.store.lock import exclusive
from pipeline.store.paths import CHECKPOINTS, STUDENT_REPORTS, STUDENTS

_STAGES = ("distill", "export", "evaluate")  # of each student


def remove_unlisted_students(names: Collection[str]) -> None:
    """Remove the folders of students that params.yaml does not name; DVC restores them if they are named again.

    Stages depend on the folders of all students, so that what an earlier student left would be part of their state: a
    colleague who has not trained it would measure everything again.

    Raises:
        BusyError: a stage of such a student is running.
    """
    roots = [root for root in (STUDENTS, STUDENT_REPORTS) if root.is_dir()]
    for name in sorted({folder.name for root in roots for folder in root.iterdir()}.difference(names)):
        with ExitStack() as held:
            for stage in _STAGES:
                if (lock := CHECKPOINTS / f"{stage}-{name}.lock").exists():
                    held.enter_context(exclusive(lock, f"running stage {stage} of {name} here"))
            for folder in (root / name for root in roots):
                if folder.is_symlink() or folder.is_file():
                    folder.unlink()
                elif folder.exists():
                    shutil.rmtree(folder)
                else:
                    continue
                logging.warning(
                    "%s is removed, because params.yaml has no such student; DVC restores it if it is named again",
                    folder,
                )
            from pipeline.training.checkpoint import remove_finished  # noqa: PLC0415  torch, for this rare case

            remove_finished(CHECKPOINTS, f"student-{name}")
