"""The files that stages hand to each other: hashes, JSON and tables, and the check of their lineage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, LineageError, brief
from pipeline.store.atomic import atomic_file

LINEAGE_KEY = b"energykd"
ROW_BYTES = 48  # of an image in any of our tables, at most
_DEEPEST = 50  # lists and mappings of JSON within each other
# what the readers of these tables take for granted
_SUBSET_COLUMNS = {"index": "i", "label": "i", "energy": "f"}
_SCORE_COLUMNS = {"label": "i", "energy": "f", "confidence": "f", "correct": "b"}
_ENERGY_COLUMNS = {"index": "i", **_SCORE_COLUMNS, "group": "i"}
# what is used to index other arrays; torch would end a GPU's process at a wrong one, and numpy takes -1 for the last
_RANGES = {"index": (0, 2**40), "label": (0, 2**31), "group": (0, 2)}
THRESHOLDS = ("low_threshold", "high_threshold")  # of the groups, in the lineage of an energy table
# what the energies of the test images and the student must have in common
FROM_TEACHER = ("data", "teacher", "energy")


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


def read_scores(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same for a table of scores, which has all images of a split in order and neither groups nor a temperature."""
    return read_table(path, _SCORE_COLUMNS)


def read_subset(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns [M] and lineage of a table of chosen images, likewise."""
    return read_table(path, _SUBSET_COLUMNS)


def check_scored(path: Path, columns: Mapping[str, Any], images: int) -> None:
    """Refuse an energy table that does not have each of so many images once, in order.

    Raises:
        DataError: it has not. Its lineage should be checked first, because that tells what a mixed file is.
    """
    if not np.array_equal(columns["index"], np.arange(images)):
        raise DataError(f"{path} does not list the images 0 to {images - 1}; run `dvc repro` to make it anew")


def check_members(path: Path, columns: Mapping[str, Any], images: int) -> None:
    """Refuse a table of chosen images that are not all among so many; the rest as for :func:`check_scored`."""
    if columns["index"].max(initial=0) >= images:
        raise DataError(f"{path} has images that are not among the {images}; run `dvc repro` to make it anew")


def check_lineage(
    path: Path,
    lineage: Mapping[str, Any],
    expected: Mapping[str, str],
    remedy: str = "run `dvc repro` so that both come from one run",
) -> None:
    """Refuse a file that was made from other inputs than the ones in use.

    Raises:
        LineageError: one of the ``expected`` hashes differs from the recorded one; both are named.
    """
    for name, wanted in expected.items():
        recorded = lineage.get(name)
        if recorded != wanted:
            raise LineageError(
                f"{path} was made from {name} {brief(str(recorded)[:12])}, but the {name} in use is {wanted[:12]}; "
                f"{remedy}"
            )
