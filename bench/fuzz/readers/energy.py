"""Tables of energies."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from bench.fuzz.judge import Target
from bench.fuzz.readers.common import Json, odd_parquet
from pipeline.store.tables import THRESHOLDS, check_lineage, read_energy, write_table


def energy_columns(count: int) -> Json:
    """Of so many images, a multiple of four, of three classes."""
    return {
        "index": np.arange(count, dtype=np.int64),
        "label": np.arange(count, dtype=np.int64) % 3,
        "energy": np.linspace(-12, -8, count, dtype=np.float32),
        "confidence": np.full(count, 0.5, np.float32),
        "correct": np.ones(count, np.bool_),
        "group": np.repeat(np.array([0, 1, 1, 2], np.int8), count // 4),
    }


def _energy_seeds(scratch: Path) -> Json:
    scratch.mkdir(parents=True, exist_ok=True)
    columns = energy_columns(40)
    lineage = {
        "temperature": 4.0,
        "low_threshold": -11.0,
        "high_threshold": -9.0,
        "data": "0" * 64,
        "teacher": "1" * 64,
        "split": "train",
    }
    write_table(scratch / "energy.parquet", columns, lineage)  # what is written here is read here
    read_energy(scratch / "energy.parquet")
    return {"columns": columns, "lineage": lineage}


def _write_energy(rng: random.Random, seeds: Json, folder: Path) -> None:
    content = odd_parquet(seeds["columns"], seeds["lineage"], rng, tuple(seeds["columns"]))
    (folder / "energy.parquet").write_bytes(content)


def _read_energy(folder: Path, seeds: Json) -> None:
    path = folder / "in/energy.parquet"
    columns, lineage = read_energy(path, *THRESHOLDS)
    check_lineage(path, lineage, {"data": "0" * 64, "teacher": "1" * 64})
    assert np.isfinite(columns["energy"]).all(), "an energy that is no number was let through"
    assert set(np.unique(columns["group"])) <= {0, 1, 2}, "a foreign group was let through"
    torch.from_numpy(columns["group"].copy())
    assert float(lineage["temperature"]) > 0


TARGET = Target("energy", "energy table", _energy_seeds, _write_energy, _read_energy)
