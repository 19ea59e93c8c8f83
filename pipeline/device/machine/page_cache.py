"""Files out of the kernel's cache, so that the next read comes from the disk as it does after a boot."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path


def files_of_cold_start(model: Path, module: str) -> list[Path]:
    """What a first start reads: the model file with the files beside it of the same name, and the runtime's package."""
    beside = sorted(model.parent.glob(f"{model.stem}.*"))
    found = importlib.util.find_spec(module)
    folders = [] if found is None else found.submodule_search_locations or []
    package = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [*beside, *package]


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget these files. It keeps pages that another process has mapped, and all of a RAM disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # unreadable for this user, so the runtime does not read it either
            continue
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def is_cached(path: Path) -> bool | None:
    """Whether the start of a file can be read without waiting for the disk; None where the system does not tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:  # this file system does not know the question
        return None
    finally:
        os.close(handle)
