"""Target devices: their names and files, and the index of what was measured on them.

The index targets/results.json is what the stage report depends on: the file exists on every machine, so a laptop's
``dvc repro`` needs no device, and it changes whenever a device was measured or its budget was changed.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config import BudgetParams, checked, validated
from pipeline.errors import DataError, ParamsError, brief
from pipeline.store.paths import TARGET_INDEX, TARGETS
from pipeline.store.tables import check_lineage, read_json, sha256_file, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_HASH = re.compile(r"[0-9a-f]{64}")


class _Result(BaseModel):
    samples_sha256: str


def check_name(name: str) -> str:
    """The name of a device, if it can be that of its folder.

    Raises:
        ParamsError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ParamsError(
            f"device name {name!r} may hold only letters, digits, _ and -, 40 at most, a letter or digit first; "
            "choose another"
        )
    return name


def device_file(name: str) -> Path:
    """targets/<name>/device.yaml."""
    return TARGETS / name / "device.yaml"


def result_file(name: str) -> Path:
    """targets/<name>/result.json, what the stage measure writes."""
    return TARGETS / name / "result.json"


def samples_file(name: str) -> Path:
    """targets/<name>/samples.npz, the latency of every timed call."""
    return TARGETS / name / "samples.npz"


def remeasure(name: str) -> str:
    """The command that measures a device again where it must."""
    return f"dvc repro {TARGETS}/{name}/dvc.yaml"


def read_index(path: Path = TARGET_INDEX) -> dict[str, Any]:
    """Device -> {"result_sha256", "budget"}, by name.

    Raises:
        DataError: the file is missing or is not such an index.
    """
    remedy = f"restore it with `git checkout {TARGET_INDEX}`, or write {{}} into it and show the devices again"
    try:
        index = read_json(path)
    except DataError as error:
        raise DataError(f"{str(error).partition(';')[0]}; {remedy}") from None
    if not isinstance(index, dict):
        raise DataError(f"{path} is not an index of device results; {remedy}")
    for name, entry in index.items():
        whole = isinstance(entry, dict) and entry.keys() == {"result_sha256", "budget"} and _NAME.fullmatch(name)
        if not whole or not _is_hash(entry["result_sha256"]):
            raise DataError(f"{path} has a damaged entry {brief(repr(name))}; {remedy}")
        validated(BudgetParams, entry["budget"], f"{path}: {name}.budget")
    return index


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def enter_result(name: str, budget: BudgetParams) -> None:
    """Put the device's present result and budget into the index.

    Raises:
        DataError: it was not measured, or the result or the index is damaged.
        LineageError: the samples beside it are of another measurement.
    """
    path, samples, remedy = result_file(name), samples_file(name), f"run `{remeasure(name)}` to make it"
    for file in (path, samples):
        if not file.is_file():
            raise DataError(f"{file} does not exist; {remedy}")
    result = checked(_Result, read_json(path), path, f"{remedy} anew")
    check_lineage(path, {"samples": result["samples_sha256"]}, {"samples": sha256_file(samples)}, f"{remedy} anew")
    entry = {"result_sha256": sha256_file(path), "budget": budget.model_dump()}
    with _locked(TARGETS):
        index = read_index()
        write_json(TARGET_INDEX, dict(sorted((index | {name: entry}).items())))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Devices may be measured at the same time, each by its own `dvc repro`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
