"""Resident memory of this process, and the kernel's file cache; None if the system does not report a value.

Memory is in kB of 1024 bytes. It is read from /proc, because on Linux the ru_maxrss of a child process starts at the
memory of its parent.
"""

import ctypes
import importlib.util
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.device.machine.system import attempt, field_of, read_text

_PROCESS = Path("/proc/self")


def current_memory_kb() -> int | None:
    return _status("VmRSS")


def peak_memory_kb() -> int | None:
    """Peak resident memory since the process started, or since ``reset_peak``."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Reset the peak to the present resident memory; False if the system does not allow it."""
    return attempt(lambda: (_PROCESS / "clear_refs").write_text("5", encoding="ascii")) is not None


def _status(name: str) -> int | None:
    value = field_of(read_text(_PROCESS / "status") or "", name)
    return None if value is None else int(value.split()[0])


def files_of_cold_start(model: Path, module: str) -> list[Path]:
    """List the files that a cold start reads: the model, other files with the same stem, and the runtime's packages."""
    models = sorted(model.parent.glob(f"{model.stem}.*"))
    package = importlib.util.find_spec(module)
    found = [] if package is None else package.submodule_search_locations or []
    # NVIDIA's TensorRT has its libraries in packages beside the one that is imported
    folders = [f"{folder}{part}" for folder in found for part in ("", "_bindings", "_libs")]
    return [*models, *(path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file())]


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Ask the kernel to drop files from its cache. It keeps pages that another process maps, and RAM disks."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # this user may not read the file, so the runtime does not read it either
            continue
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def is_cached(path: Path) -> bool | None:
    """Return true if a page of a file is in the kernel's cache; None if the system does not report it.

    This uses mincore, because a read that must not wait (RWF_NOWAIT) makes the kernel read the file ahead.
    """
    try:
        mincore = ctypes.CDLL(None).mincore
        # of a file that this user may not write, the kernel reports every page as cached
        if not (hasattr(os, "posix_fadvise") and os.access(path, os.W_OK)):
            return None
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
            pages = (ctypes.c_ubyte * -(-len(mapping) // mmap.PAGESIZE))()
            first = ctypes.c_char.from_buffer(mapping)
            failed = mincore(ctypes.byref(first), ctypes.c_size_t(len(mapping)), pages)
            del first  # a mapping with a reference to it cannot be closed
    except (OSError, ValueError, AttributeError):  # no such file, an empty one, or a system without mincore
        return None
    return None if failed else any(page & 1 for page in pages)
