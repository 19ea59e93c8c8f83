"""Room on a disk, asked for before the work whose outputs need it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from pipeline.errors import SpaceError

SMALL = 2**20  # bytes; what cards, curves, tables of metrics and the file system itself take beside the large files
_DVC = Path(".dvc")


def require_space(path: Path, needed: int, what: str, remedy: str = "free space there", *, output: int = 0) -> None:
    """Refuse work whose outputs a disk cannot hold, or takes none of.

    Args:
        path: file or folder that is to be written; need not exist.
        needed: bytes, at most, at any moment of the work, beside what is there already.
        what: is written, in the plural.
        remedy: what to do, beside running the command again.
        output: bytes of it that dvc copies into its cache once the stage is done.

    Raises:
        SpaceError: names the disk by the nearest folder that exists.
        OSError: that folder cannot be written.
    """
    folder = next(parent for parent in path.parents if parent.exists())
    if not os.access(folder, os.W_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))
    needed += SMALL + (output if _copied_by_dvc(folder) else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SpaceError(
            f"{what} need {_megabytes(needed)}, but {folder.absolute()} has {_megabytes(free)} free; {remedy}"
        )


def _copied_by_dvc(folder: Path) -> bool:
    """Whether dvc, which names the stage to its program, keeps its cache on the same disk.

    Its default is a copy where the file system cannot share blocks between files; whoever set up another cache is not
    asked for room for one.
    """
    if "DVC_STAGE" not in os.environ or not _DVC.exists():
        return False
    settings = (_DVC / name for name in ("config", "config.local"))
    own_cache = any("[cache]" in path.read_text(encoding="utf-8") for path in settings if path.exists())
    return not own_cache and _DVC.stat().st_dev == folder.stat().st_dev


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
