"""What students that were taken out of params.yaml leave behind."""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from pipeline.store.lock import exclusive
from pipeline.store.paths import (
    ANSWERS,
    CHECKPOINTS,
    CURVES,
    EVALUATION,
    EXPORT,
    NETWORK,
    STUDENT_REPORTS,
    STUDENTS,
)
from stages.dvc_files import hash_of, outputs_of_lockfile

_STAGES = ("distill", "export", "evaluate")  # of each student
_WRITTEN = {STUDENTS: {NETWORK, EXPORT}, STUDENT_REPORTS: {CURVES, EVALUATION, ANSWERS}}  # by them, in its folders


def remove_unlisted_students(names: Collection[str]) -> None:
    """Remove what DVC restores, or stages make again, of students that params.yaml does not name; warn of the rest.

    Stages depend on the folders of all students, so that what an earlier student left would be part of their state: a
    colleague who has not trained it would measure everything again. A network other than that of dvc.lock, and files
    that no stage writes, exist only here, and are left.

    Raises:
        BusyError: a stage of such a student is running.
    """
    roots = [root for root in _WRITTEN if root.is_dir()]
    unlisted = sorted({entry.name for root in roots for entry in root.iterdir()}.difference(names))
    known = outputs_of_lockfile() if unlisted else {}
    for name in unlisted:
        folders = [root / name for root in roots if os.path.lexists(root / name)]
        if (path := next(_only_here(folders, known), None)) is not None:
            logging.warning(
                "%s belongs to no student of params.yaml, and DVC cannot restore it, so it is left, but it is part of "
                "what DVC compares before it measures or reports; move it out of %s, or remove it",
                path,
                folders[0].parent,
            )
            continue
        with ExitStack() as held:
            for stage in _STAGES:
                if (lock := CHECKPOINTS / f"{stage}-{name}.lock").exists():
                    held.enter_context(exclusive(lock, f"running stage {stage} of {name} here"))
            for folder in folders:
                promise = "; DVC restores it if it is named again" if known.keys() >= set(folder.iterdir()) else ""
                shutil.rmtree(folder)
                logging.warning("%s is removed, because params.yaml has no such student%s", folder, promise)
            from pipeline.training.checkpoint import remove_finished  # noqa: PLC0415  torch, for this rare case

            remove_finished(CHECKPOINTS, f"student-{name}")


def _only_here(folders: Collection[Path], known: Mapping[Path, str]) -> Iterator[Path]:
    """What no stage wrote in the folders of a student, and its network if DVC has another one or none."""
    for folder in folders:
        if folder.is_symlink() or not folder.is_dir():
            yield folder
            continue
        for path in sorted(folder.iterdir()):
            if path.name not in _WRITTEN[folder.parent] or (path.name == NETWORK and hash_of(path) != known.get(path)):
                yield path
