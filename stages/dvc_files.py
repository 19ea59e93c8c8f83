"""Repairs dvc's own files: dvc rewrites them in place, and one that a kill has truncated stops every later dvc."""

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML, YAMLError
from voluptuous import Invalid

from pipeline.store.lock import is_dvc
from pipeline.store.paths import TARGETS

LOCKFILE = Path("dvc.lock")
_TEMPORARY = Path(".dvc/tmp")
_USERS = _TEMPORARY / "rwlock"


def repair_dvc_files() -> None:
    """Move damaged files out of the way, with a warning. Files that a running dvc may be writing are left alone."""
    with _locked(_TEMPORARY / "rwlock.lock") as free:
        if free and _USERS.exists():
            users = _users()
            if users is None:
                _USERS.unlink()
                logging.warning("%s was cut short when a dvc was killed, and is removed", _USERS)
            elif not any(is_dvc(each) for each in psutil.process_iter() if each.pid in users):
                # dvc drops the entries of a killed dvc, unless another program has its process id by now
                _USERS.unlink()
    with _locked(_TEMPORARY / "lock") as free:
        for path in (LOCKFILE, *sorted(TARGETS.glob("*/dvc.lock"))):
            if free and path.exists() and _read_lockfile(path) is None:
                aside = _TEMPORARY / f"{'_'.join(path.parts)}.damaged"
                path.replace(aside)
                logging.warning(
                    "%s was cut short when a dvc was killed, and is now %s; dvc takes what was computed from its cache",
                    path,
                    aside,
                )


@contextmanager
def _locked(lock: Path) -> Iterator[bool]:
    """Take a lock of dvc; False if it is held, or dvc has never run here."""
    if not lock.exists():
        yield _TEMPORARY.is_dir()
        return
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _users() -> set[int] | None:
    """Ids of the processes that dvc has recorded as users of files; None if the record cannot be read."""
    try:
        noted = json.loads(_USERS.read_text(encoding="utf-8"))
        readers = [entry for entries in noted.get("read", {}).values() for entry in entries]
        users = {entry["pid"] for entry in [*readers, *noted.get("write", {}).values()]}
        return users if all(isinstance(pid, int) for pid in users) else None
    except (ValueError, AttributeError, TypeError, KeyError):
        return None


def outputs_of_lockfile() -> dict[Path, str]:
    """The outputs that dvc.lock lists, also of stages that dvc.yaml has no more, each with its hash in dvc's cache."""
    lockfile = _read_lockfile(LOCKFILE) if LOCKFILE.exists() else None
    stages = (lockfile or {}).get("stages", {}).values()
    return {Path(out["path"]): out["md5"] for stage in stages for out in stage.get("outs", [])}


def hash_of(path: Path) -> str:
    """The hash that dvc gives a file or a folder."""
    from dvc.fs import localfs  # noqa: PLC0415  a third of a second, for the rare case of an unlisted student
    from dvc_data.hashfile.build import build  # noqa: PLC0415
    from dvc_data.hashfile.db import HashFileDB  # noqa: PLC0415

    _, _, content = build(HashFileDB(localfs, ""), str(path), localfs, "md5", dry_run=True)
    return str(content.hash_info.value)


def _read_lockfile(path: Path) -> dict[str, Any] | None:
    """The content of a dvc.lock; None if it is damaged."""
    try:
        content: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        COMPILED_LOCKFILE_SCHEMA(content)
    except (ValueError, YAMLError, Invalid):
        return None
    return content
