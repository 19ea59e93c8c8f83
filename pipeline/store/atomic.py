"""Files and folders that are written whole or not at all, whatever ends the writer."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_APPENDED = r"[a-z0-9_]{8}(\.earlier)?"  # by tempfile
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM})
_LITTLE = 2**20  # bytes


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces ``path`` when the block ends well, else is removed.

    It is on the disk before it has the name: a power cut leaves the file from before or this one, never an empty one.
    What killed writers of ``path`` left behind is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with naming(path), _claimed(lambda: Path(_new_file(path))) as temporary:
        try:
            with naming(path):
                yield temporary
                temporary.chmod(0o644)
                _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes the place of ``path`` when the block ends well.

    As :func:`atomic_file`, but for a moment in which there is neither: a kill or a power cut then leaves none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with (
        naming(path),
        _claimed(lambda: Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))) as temporary,
    ):
        earlier = temporary.with_name(f"{temporary.name}.earlier")
        try:
            with naming(path):  # while all that was written is still there
                yield temporary
                temporary.chmod(0o755)
                for part in (*temporary.rglob("*"), temporary):
                    _flush(part)
            if path.exists():
                path.replace(earlier)  # in one piece: removing it may fail half way
            temporary.replace(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(earlier, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders of writers of ``path`` that were killed; those of living ones stay."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        if re.fullmatch(_APPENDED, leftover.name.removeprefix(f".{path.name}.")):
            _remove_leftover(leftover)


def remove_all_leftovers(folder: Path) -> None:
    """The same for writers of anything in a folder of ours: what none of them is going to write again, since dvc took
    it from its cache, has no next writer."""
    for leftover in list(folder.rglob(".*")):
        if re.fullmatch(rf"\..+\.{_APPENDED}", leftover.name):
            _remove_leftover(leftover)


def _remove_leftover(leftover: Path) -> None:
    try:
        handle = os.open(leftover, os.O_RDONLY)
    except OSError:
        return  # its writer ended in this moment, or it is not ours to open
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing ``path`` say that the disk refused it, and where.

    The system's own does not name the file on a full disk, and may name a temporary one. Libraries raise errors of
    other kinds, or find later that a file is damaged: whatever fails while the disk takes no more fails for that.

    Raises:
        OSError: with the number of the system and ``path``.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in _OF_WRITING:
            number = _refused(path.parent)
        elif isinstance(error, OSError) and error.filename and not _is_temporary(Path(error.filename), path):
            raise
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _is_temporary(file: Path, path: Path) -> bool:
    """Whether a file is the temporary one of ``path``, or in the temporary folder of it."""
    return any(part.startswith(f".{path.name}.") for part in file.parts)


def _refused(folder: Path) -> int | None:
    """The number of the error with which the disk refuses a little more; None if it does not."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_LITTLE))
    except OSError as error:
        return error.errno if error.errno in _OF_WRITING else None
    return None


def _new_file(path: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    return name


@contextmanager
def _claimed(make: Callable[[], Path]) -> Iterator[Path]:
    """A new temporary file or folder, locked for as long as its writer lives, which is how a leftover is known."""
    while True:
        temporary = make()
        try:
            handle = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue  # taken for a leftover before it was locked
        with suppress(OSError):  # a file system without locks: its leftovers stay
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)
    try:
        yield temporary
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
