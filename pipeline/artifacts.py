"""The files that stages hand to each other: written whole or not at all, hashed, and checked for their lineage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, LineageError

LINEAGE_KEY = b"energykd"


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
    """Yield a temporary path beside ``path`` that replaces ``path`` when the block ends well, else is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _naming(path):
            yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    earlier = temporary.with_name(f"{temporary.name}.earlier")
    try:
        with _naming(path):
            yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.replace(earlier)  # in one piece: removing it may fail half way
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as JSON ({error}); run `dvc repro` to make it anew") from None


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


def read_table(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns (numpy arrays) and lineage of a Parquet artifact.

    Raises:
        DataError: the file is missing, damaged or not one of ours.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not readable as Parquet ({reason}); run `dvc repro` to make it anew") from None
    metadata = table.schema.metadata or {}
    if LINEAGE_KEY not in metadata:
        raise DataError(f"{path} carries no lineage; run `dvc repro` to make it anew")
    return {name: table[name].to_numpy() for name in table.column_names}, json.loads(metadata[LINEAGE_KEY])


def check_lineage(path: Path, lineage: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Refuse a file that was made from other inputs than the ones in use.

    Raises:
        LineageError: one of the ``expected`` hashes differs from the recorded one; both are named.
    """
    for name, wanted in expected.items():
        recorded = lineage.get(name)
        if recorded != wanted:
            raise LineageError(
                f"{path} was made from {name} {str(recorded)[:12]}, but the {name} in use is {wanted[:12]}; "
                "run `dvc repro` so that both come from one run"
            )
