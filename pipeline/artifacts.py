"""The files that stages hand to each other: written whole or not at all, hashed, and checked for their lineage."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BusyError, DataError, LineageError, brief

LINEAGE_KEY = b"energykd"
_DEEPEST = 50  # lists and mappings of JSON within each other
# what the readers of these tables take for granted
_SUBSET_COLUMNS = {"index": "i", "label": "i", "energy": "f"}
_ENERGY_COLUMNS = {"index": "i", "label": "i", "energy": "f", "confidence": "f", "correct": "b", "group": "i"}
# what is used to index other arrays; torch would end a GPU's process at a wrong one, and numpy takes -1 for the last
_RANGES = {"index": (0, 2**40), "label": (0, 2**31), "group": (0, 2)}
THRESHOLDS = ("low_threshold", "high_threshold")  # of the groups, in the lineage of an energy table
_LEFTOVER = re.compile(r"[a-z0-9_]{8}(\.earlier)?")  # what tempfile appends
_DYING_SECONDS = 10.0  # a data loader's workers look for their parent every 5 seconds

_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of writing say where: on a full disk the system's own does not."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces ``path`` when the block ends well, else is removed.

    It is on the disk before it has the name: a power cut leaves the file from before or this one, never an empty one.
    What killed writers of ``path`` left behind is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with _claimed(lambda: Path(_new_file(path))) as temporary:
        try:
            with _naming(path):
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
    with _claimed(lambda: Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))) as temporary:
        earlier = temporary.with_name(f"{temporary.name}.earlier")
        try:
            with _naming(path):
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
        if not _LEFTOVER.fullmatch(leftover.name.removeprefix(f".{path.name}.")):
            continue
        try:
            handle = os.open(leftover, os.O_RDONLY)
        except OSError:
            continue  # its writer ended in this moment, or it is not ours to open
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        finally:
            os.close(handle)


@contextmanager
def exclusive(lock: Path, work: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the file names the process, for the one that finds it held.

    The lock ends with the process, however that ends. One whose holder is dead is held for a few seconds more by the
    processes that it had started, which notice its end: they are waited for.

    Args:
        work: what is done under it, as "training this teacher".

    Raises:
        BusyError: another process holds it; names the process, and says if what started that one is gone.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _DYING_SECONDS
    with lock.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = _holder(file.read())
                if holder is None or not holder.dead or time.monotonic() > deadline:
                    raise BusyError(_busy(lock, work, holder)) from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(json.dumps(_me()))
        file.flush()
        yield


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock: its process, that one's parent when it took the lock, their machine, and if dvc started it."""

    pid: int
    parent: int
    host: str
    by_dvc: bool

    @property
    def here(self) -> bool:
        return self.host == os.uname().nodename

    @property
    def dead(self) -> bool:
        return self.here and _status(self.pid) is None

    @property
    def orphaned(self) -> bool:
        parent = _status(self.pid) if self.here else None
        if parent is None:
            return False
        # a dvc that was killed while its stage still started was not its parent any more when that took the lock
        return parent != self.parent or (self.by_dvc and not _is_dvc(parent))


def _me() -> dict[str, Any]:
    # DVC_STAGE: dvc sets it for the programs of stages
    by_dvc = "DVC_STAGE" in os.environ
    return {"pid": os.getpid(), "parent": os.getppid(), "host": os.uname().nodename, "by_dvc": by_dvc}


def _is_dvc(pid: int) -> bool:
    """Whether a process, or one that it descends from, is dvc: between the two there may be a shell."""
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        if b"dvc" in words:
            return True
        pid = _status(pid) or 0
    return False


def _holder(text: str) -> _Holder | None:
    """None if the file does not tell, for the moment in which its holder writes it."""
    try:
        return _Holder(**json.loads(text))
    except (json.JSONDecodeError, TypeError):
        return None


def _status(pid: int) -> int | None:
    """The parent of a process that runs on this machine, else None; also for one that is dead but not yet reaped."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def _busy(lock: Path, work: str, holder: _Holder | None) -> str:
    if holder is None:
        return f"another process is already {work} (it holds {lock}); wait for it or stop it"
    if not holder.here:
        return (
            f"process {holder.pid} on {holder.host} is already {work} (it holds {lock}); wait for it or stop it there"
        )
    if holder.dead:
        return (
            f"processes that the ended process {holder.pid} started are still {work} (they hold {lock}); "
            f"`fuser {lock}` names them: wait for them or stop them"
        )
    if holder.orphaned:
        return (
            f"process {holder.pid} is already {work}, left behind by a dvc that was killed (it holds {lock}); wait "
            f"until it ends or stop it with `kill {holder.pid}`, then run the same command again"
        )
    return f"process {holder.pid} is already {work} (it holds {lock}); wait for it or stop it with `kill {holder.pid}`"


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


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(path: Path) -> tuple[Path, ...]:
    """The files that make up an exported model: an OpenVINO IR is its .xml and the .bin beside it."""
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)


def sha256_model(path: Path) -> str:
    """Hex SHA-256 over the bytes of all files of an exported model, the named one first.

    Raises:
        DataError: one of them is missing.
    """
    digest = hashlib.sha256()
    for part in model_files(path):
        if not part.is_file():
            raise DataError(f"{part} does not exist; run `dvc repro export` to make it")
        digest.update(part.read_bytes())
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused (ValueError), because JSON has neither."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON artifact.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
    except ValueError as error:
        raise DataError(f"{path} is not readable as JSON ({brief(error)}); run `dvc repro` to make it anew") from None


def parse_json(content: bytes) -> Any:
    """What JSON in UTF-8 holds. Stricter than Python: what would fail later, far from the file, is refused here.

    Raises:
        ValueError: it is no JSON, or holds a number that is not finite or needs more than 64 bits, text that UTF-8
            cannot hold, or lists within lists without end.
    """
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_json(value, _DEEPEST)
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{brief(text, 20)} is too large")
    return value


def _check_json(value: Any, deepest: int) -> None:
    if deepest == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("a number needs more than 64 bits")
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode("utf-8")
            _check_json(item, deepest - 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, deepest - 1)


def write_table(path: Path, columns: Mapping[str, Any], lineage: Mapping[str, Any]) -> None:
    """Write columns of equal length as Parquet, with ``lineage`` as JSON in the file's metadata."""
    write_table_parts(path, [columns], lineage)


def write_table_parts(path: Path, parts: Iterable[Mapping[str, Any]], lineage: Mapping[str, Any]) -> None:
    """The same for a table that comes in parts, which are its row groups: one is held at a time.

    Raises:
        ValueError: there is no part.
    """
    metadata = {LINEAGE_KEY: json.dumps(lineage, allow_nan=False).encode()}
    with atomic_file(path) as temporary, ExitStack() as opened:
        writer: Any = None
        for columns in parts:
            table = pa.table(dict(columns)).replace_schema_metadata(metadata)
            if writer is None:
                writer = opened.enter_context(pq.ParquetWriter(temporary, table.schema))
            writer.write_table(table)
        if writer is None:
            raise ValueError(f"{path} would have neither rows nor columns")


def read_table(
    path: Path, columns: Mapping[str, str] | None = None, facts: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns (numpy arrays) and lineage of a Parquet artifact.

    Args:
        columns: those that must be there -> the numpy kinds that they may be of, as "iu"; floats must be finite.
        facts: finite numbers that must be in the lineage.

    Raises:
        DataError: the file is missing, damaged or not one of ours.
    """
    remedy = "run `dvc repro` to make it anew"
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        found = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
    except Exception as error:  # a reader of damaged bytes fails in many ways
        raise DataError(f"{path} is not readable as Parquet ({brief(error)}); {remedy}") from None
    if LINEAGE_KEY not in metadata:
        raise DataError(f"{path} carries no lineage; {remedy}")
    try:
        lineage = parse_json(metadata[LINEAGE_KEY])
    except ValueError as error:
        raise DataError(f"the lineage of {path} is not readable as JSON ({brief(error)}); {remedy}") from None
    if not isinstance(lineage, dict):
        raise DataError(f"the lineage of {path} is {type(lineage).__name__}, not a mapping; {remedy}")
    for name, kinds in (columns or {}).items():
        if name not in found or found[name].dtype.kind not in kinds:
            what = f"{name} as {found[name].dtype}" if name in found else f"no column {name}"
            raise DataError(f"{path} has {what}, which is no such table; {remedy}")
        if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
            raise DataError(f"{path} has values of {name} that are not finite; {remedy}")
        if name in _RANGES and len(found[name]):
            low, high = _RANGES[name]
            if found[name].min() < low or found[name].max() > high:
                raise DataError(f"{path} has values of {name} outside of {low} to {high}; {remedy}")
    for name in facts:
        if isinstance(lineage.get(name), bool) or not isinstance(lineage.get(name), (int, float)):
            raise DataError(f"the lineage of {path} has no number {name}; {remedy}")
    return found, lineage


def read_energy(path: Path, *facts: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns [N] and lineage of an energy table; as :func:`read_table`, and all that is in one is in it.

    Args:
        facts: numbers that must be in the lineage beside the temperature.

    Raises:
        DataError: the file is missing, damaged, or no energy table.
    """
    columns, lineage = read_table(path, _ENERGY_COLUMNS, ("temperature", *facts))
    if not lineage["temperature"] > 0:
        raise DataError(f"the lineage of {path} has no positive temperature; run `dvc repro` to make it anew")
    return columns, lineage


def read_subset(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns [M] and lineage of a table of chosen images, likewise."""
    return read_table(path, _SUBSET_COLUMNS)


def check_lineage(path: Path, lineage: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Refuse a file that was made from other inputs than the ones in use.

    Raises:
        LineageError: one of the ``expected`` hashes differs from the recorded one; both are named.
    """
    for name, wanted in expected.items():
        recorded = lineage.get(name)
        if recorded != wanted:
            raise LineageError(
                f"{path} was made from {name} {brief(str(recorded)[:12])}, but the {name} in use is {wanted[:12]}; "
                "run `dvc repro` so that both come from one run"
            )
