"""Turns errors of disk, permissions and memory into one-sentence messages."""

import errno
import os
import re

from pipeline.portable.text import first_line, last_line

_REMEDIES = {
    errno.ENOSPC: "free space there and run the same command again",
    errno.EDQUOT: "free space there or raise the quota, and run the same command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or use another disk",
    errno.EROFS: "run on a disk that can be written",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.EIO: "check the disk",
    errno.ENAMETOOLONG: "use a shorter name",
}
_LESS = (
    "lower batch_size of the training, launcher.processes or data.image_size, or set data.storage to files, and run "
    "the same command again"
)
_MEMORY = "the main memory does not suffice"
# torch raises plain RuntimeError for most of these
_OF_TORCH = {
    r"</?torch_\d+_|insufficient shared memory|DataLoader worker .* Bus error": (
        "the shared memory in which decoded images are handed over is full",
        "enlarge /dev/shm (docker run --shm-size), or set data.storage to packed",
    ),
    r"\bout of memory\b|CU(BLAS|DNN)_STATUS_ALLOC_FAILED": ("the memory of the GPU does not suffice", _LESS),
    r"can't allocate memory|not enough memory|Cannot allocate memory|std::bad_alloc|new thread": (_MEMORY, _LESS),
    r"DataLoader worker .*(is killed by signal|exited unexpectedly)": (
        "a process that decodes images was ended from outside, perhaps for lack of memory",
        _LESS,
    ),
}


def environment_error(error: Exception) -> str | None:
    """The sentence for an error that the environment caused; None for any other error."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{os.strerror(error.errno)}; {_REMEDIES[error.errno]}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"{_MEMORY} ({_reason(error)}); {_LESS}"
    if isinstance(error, RuntimeError):
        for pattern, (what, remedy) in _OF_TORCH.items():
            if re.search(pattern, str(error)):
                return f"{what} ({_reason(error)}); {remedy}"
    return None


def _reason(error: Exception) -> str:
    """The library's own words: the last line where it quotes the traceback of a worker, else the first."""
    return last_line(error) if "Traceback" in str(error) else first_line(error)
