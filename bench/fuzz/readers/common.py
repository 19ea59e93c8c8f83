"""What several of the targets are made of."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from bench.fuzz.mutate import TEXTS, mutate_bytes, mutate_value
from pipeline.store.tables import LINEAGE_KEY

ROOT = Path(pipeline.__file__).parents[1]
Json = dict[str, Any]
HASH = "0" * 64


def class_names() -> list[str]:
    """A list of its own for each card."""
    return ["zero", "one", "two"]


def as_json(value: Any) -> bytes:
    """As Python writes it, NaN among it; a lone surrogate as an escape."""
    return json.dumps(value).encode()


def plain_parquet(columns: Mapping[str, Any], lineage: bytes | None) -> bytes:
    """A table with ``lineage`` as it is in the metadata."""
    buffer = io.BytesIO()
    table = pa.table(dict(columns))
    pq.write_table(table if lineage is None else table.replace_schema_metadata({LINEAGE_KEY: lineage}), buffer)
    return buffer.getvalue()


_COLUMNS = (
    lambda n: pa.array(["x"] * n),
    lambda n: pa.array([None] * n, pa.float32()),
    lambda n: pa.array([[1]] * n),
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.array([float("nan")] * n, pa.float32()),
    lambda n: pa.array([float("inf")] * n, pa.float64()),
    lambda n: pa.array([-1] * n, pa.int64()),
    lambda n: pa.array([2**62] * n, pa.int64()),
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([0] * n, pa.timestamp("ns")),
    lambda n: pa.array(["a"] * n).dictionary_encode(),
    lambda n: pa.array([1] * n, pa.decimal128(5, 2)),
    pa.nulls,
    lambda n: pa.array([7] * n, pa.int8()),
)


def odd_parquet(columns: Mapping[str, Any], lineage: Any, rng: random.Random, names: tuple[str, ...]) -> bytes:
    """A table with a damaged byte, a foreign column, a missing or further one, or other metadata."""
    facts = None if lineage is None else as_json(lineage)
    match rng.randrange(5):
        case 0 | 1:
            return mutate_bytes(plain_parquet(columns, facts), rng)
        case 2:
            count = len(next(iter(columns.values())))
            name = rng.choice((*names, rng.choice(TEXTS[1:16])))
            return plain_parquet({**columns, name: rng.choice(_COLUMNS)(count)}, facts)
        case 3:
            lost = rng.choice(names)
            most = rng.choice((0, 1))
            short = {key: value[:most] for key, value in columns.items()}
            return plain_parquet(
                short if rng.randrange(2) else {key: value for key, value in columns.items() if key != lost}, facts
            )
        case _:
            text = as_json(mutate_value(lineage, rng))
            return plain_parquet(columns, mutate_bytes(text, rng) if rng.randrange(2) else text)


def void(value: object) -> None:
    """For a reader whose answer is not looked at."""
