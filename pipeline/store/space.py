"""Free space on a disk and memory of the host, checked before the work that needs them."""

import errno
import os
import shutil
from pathlib import Path

from pipeline.errors import SpaceError

SMALL = 2**20  # bytes for cards, curves, metrics and the file system itself
_DVC = Path(".dvc")


def require_space(path: Path, needed: int, what: str, remedy: str = "free space there", *, output: int = 0) -> None:
    """Refuse work whose outputs a disk cannot hold or does not accept.

    Args:
        path: file or folder that is to be written; need not exist.
        needed: upper bound of the additional bytes at any moment of the work.
        what: name of the outputs, in the plural, for the message.
        remedy: advice for the message.
        output: bytes that dvc copies into its cache after the stage.

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


def host_memory() -> int:
    """Bytes of main memory, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _copied_by_dvc(folder: Path) -> bool:
    """Whether dvc runs this stage and will copy its outputs into a cache on the same disk.

    Copying is dvc's default where the file system cannot share blocks; a configured cache is not counted.
    """
    if "DVC_STAGE" not in os.environ or not _DVC.exists():
        return False
    settings = (_DVC / name for name in ("config", "config.local"))
    own_cache = any("[cache]" in path.read_text(encoding="utf-8") for path in settings if path.exists())
    return not own_cache and _DVC.stat().st_dev == folder.stat().st_dev


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
