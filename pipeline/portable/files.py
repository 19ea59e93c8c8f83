"""File hashes and atomic writes: a file or folder is written completely or not at all, even if its writer is killed."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_CHUNK = 2**20  # bytes
_TEMPORARY_SUFFIX = r"[a-z0-9_]{8}(\.earlier)?"  # tempfile appends eight characters
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM})


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_object(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file; None if the file is missing or holds no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, for :func:`read_object`."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path. It replaces ``path`` if the block succeeds, and is removed if the block fails.

    The data is on the disk before the file gets its name, so a power cut leaves the old or the new file, never an empty
    one. Temporary files of killed writers of ``path`` are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with path_in_errors(path), _locked(lambda: Path(_new_file(path))) as temporary:
        try:
            with path_in_errors(path):
                yield temporary
                temporary.chmod(0o644)
                _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder. It replaces ``path`` if the block succeeds, and is removed if the block fails.

    Unlike :func:`atomic_file`, a kill or a power cut between the two renames leaves no folder at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    prefix = f".{path.name}."
    with path_in_errors(path), _locked(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))) as temporary:
        earlier = temporary.with_name(f"{temporary.name}.earlier")
        try:
            with path_in_errors(path):  # checks the free space while the new files still use it
                yield temporary
                temporary.chmod(0o755)
                for part in (*temporary.rglob("*"), temporary):
                    _flush(part)
            if path.exists():
                path.replace(earlier)  # a rename is atomic; a removal could stop half way
            temporary.replace(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(earlier, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders that killed writers of ``path`` left behind. Those of running writers stay."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        if re.fullmatch(_TEMPORARY_SUFFIX, leftover.name.removeprefix(f".{path.name}.")):
            _remove_leftover(leftover)


def remove_all_leftovers(folder: Path) -> None:
    """Remove such leftovers of all files below a folder, even if no later run writes these files again."""
    for leftover in list(folder.rglob(".*")):
        if re.fullmatch(rf"\..+\.{_TEMPORARY_SUFFIX}", leftover.name):
            _remove_leftover(leftover)


def _remove_leftover(leftover: Path) -> None:
    try:
        handle = os.open(leftover, os.O_RDONLY)
    except OSError:
        return  # the writer has just removed it, or this user may not open it
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
def path_in_errors(path: Path) -> Iterator[None]:
    """Turn errors that a full or read-only disk causes into an OSError that names ``path``.

    The system's error names no file on a full disk, or the temporary one. Libraries raise other errors, or report a
    damaged file later. So every error in the block counts as a disk error if the disk accepts no more data.

    Raises:
        OSError: the system's error number with ``path``.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in _WRITE_ERRORS:
            number = _write_error(path.parent)
        elif isinstance(error, OSError) and error.filename and f"/.{path.name}." not in f"/{error.filename}":
            raise  # it names no temporary file or folder of ``path``
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _write_error(folder: Path) -> int | None:
    """Write a small file as a test, and return the system's error number; None if the disk accepts it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_CHUNK))
    except OSError as error:
        return error.errno if error.errno in _WRITE_ERRORS else None
    return None


def _new_file(path: Path) -> str:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    return name


@contextmanager
def _locked(make: Callable[[], Path]) -> Iterator[Path]:
    """Yield a new temporary file or folder that its writer keeps locked. A leftover is one without a lock."""
    while True:
        temporary = make()
        try:
            handle = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another writer removed it as a leftover before it was locked
        with suppress(OSError):  # leftovers stay on a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            break
        os.close(handle)
    try:
        yield temporary
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    """Write the content of a file, or the names in a folder, through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
