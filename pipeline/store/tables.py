"""Tables of images as Parquet, each with its lineage in the metadata, and the hash of an exported model."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import DataError
from pipeline.portable.files import atomic_file
from pipeline.portable.text import brief
from pipeline.store.documents import Document, Hash
from pipeline.store.json_files import parse_json
from pipeline.store.paths import model_files

ROW_BYTES = 48  # upper bound for an image in any of these tables
_METADATA_KEY = b"energykd"
# columns that index other arrays: a wrong value ends a process on a GPU, and numpy takes -1 for the last element
_RANGES = {"index": (0, 2**40), "label": (0, 2**31), "group": (0, 2)}

Finite = Annotated[float, Field(allow_inf_nan=False)]


class EnergyLineage(Document):
    """Lineage of an energy table.

    Attributes:
        temperature: T_E.
        low_threshold, high_threshold: thresholds of the groups, which are fitted on the training split.
        energy: in the table of the test split, hash of the training split's table; None in the latter.
    """

    FORMAT = 2
    MADE_BY = "score_energy"

    data: Hash
    teacher: Hash
    split: Literal["train", "test"]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    low_threshold: Finite
    high_threshold: Finite
    energy: Hash | None = None


class SubsetLineage(Document):
    """Lineage of the subset that HE-DA mixes."""

    MADE_BY = "build_subset"

    data: Hash
    energy: Hash
    fraction: float
    subset: Literal["high_energy", "random", "low_energy"]


L = TypeVar("L", bound=Document)


@dataclass(frozen=True)
class Table(Generic[L]):
    """Columns of equal length [N], and what they were made from."""

    columns: Mapping[str, NDArray[Any]]
    lineage: L


# type of the lineage -> columns of the table with their numpy kinds
_COLUMNS: dict[type[Document], dict[str, str]] = {
    EnergyLineage: {
        "index": "i",
        "label": "i",
        "energy": "f",
        "max_logit": "f",
        "confidence": "f",
        "correct": "b",
        "group": "i",
    },
    SubsetLineage: {"index": "i", "label": "i", "energy": "f"},
}


def sha256_model(path: Path) -> str:
    """Hex SHA-256 over the bytes of all files of an exported model, the named one first.

    Raises:
        DataError: one of them is missing.
    """
    digest = hashlib.sha256()
    for part in model_files(path):
        if not part.is_file():
            raise DataError(f"{part} does not exist; run `dvc repro` to make it")
        digest.update(part.read_bytes())
    return digest.hexdigest()


def write_table(path: Path, parts: Iterable[Mapping[str, Any]], lineage: Document) -> None:
    """Write a table part by part, each as a row group; only one part is in memory.

    Args:
        parts: columns of equal length, at least one part.
        lineage: for the metadata; its type decides the required columns.

    Raises:
        ValueError: there is no part.
    """
    metadata = {_METADATA_KEY: json.dumps(lineage.content(), allow_nan=False).encode()}
    with atomic_file(path) as temporary, ExitStack() as opened:
        writer: Any = None
        for columns in parts:
            table = pa.table(dict(columns)).replace_schema_metadata(metadata)
            if writer is None:
                writer = opened.enter_context(pq.ParquetWriter(temporary, table.schema))
            writer.write_table(table)
        if writer is None:
            raise ValueError(f"{path} would have neither rows nor columns")


def read_table(path: Path, lineage: type[L]) -> Table[L]:
    """Read a table and check its columns.

    Args:
        lineage: type of the metadata.

    Raises:
        DataError: the file is missing, damaged, of another format or no such table.
    """
    remedy = f"run `dvc repro {lineage.MADE_BY}`"
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        found = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {remedy}") from None
    except Exception as error:  # pyarrow raises many kinds of errors on damaged files
        raise DataError(f"{path} is not readable as Parquet ({brief(error)}); {remedy}") from None
    if _METADATA_KEY not in metadata:
        raise DataError(f"{path} carries no lineage; {remedy}")
    try:
        made_from = lineage.parsed(parse_json(metadata[_METADATA_KEY]), path)
    except ValueError as error:
        raise DataError(f"the lineage of {path} is not readable as JSON ({brief(error)}); {remedy}") from None
    for name, kind in _COLUMNS[lineage].items():
        if name not in found or found[name].dtype.kind != kind:
            what = f"{name} as {found[name].dtype}" if name in found else f"no column {name}"
            raise DataError(f"{path} has {what}, so it is not the expected table; {remedy}")
        if kind == "f" and not np.isfinite(found[name]).all():
            raise DataError(f"{path} has values of {name} that are not finite; {remedy}")
        if name in _RANGES and len(found[name]):
            low, high = _RANGES[name]
            if found[name].min() < low or found[name].max() > high:
                raise DataError(f"{path} has values of {name} outside of {low} to {high}; {remedy}")
    return Table(found, made_from)
