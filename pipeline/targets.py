"""Target devices: their settings and files, and the index of what was measured on them.

The stage report depends on the index targets/results.json: every clone has the file, so ``dvc repro`` needs no device,
and it changes when a device was measured or its budget was changed.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from filelock import FileLock
from pydantic import Field, StrictFloat, StrictInt, TypeAdapter, ValidationError, model_validator

from pipeline.config import BenchmarkParams, Block, BudgetParams, Positive, read_yaml, validated
from pipeline.errors import DataError, ParamsError
from pipeline.portable.files import sha256_file
from pipeline.portable.text import brief
from pipeline.remote import Address, RemoteError
from pipeline.store.documents import Measurement, ShownResult, check_lineage
from pipeline.store.json_files import read_json, write_json
from pipeline.store.paths import CHECKPOINTS, TARGET_INDEX, TARGETS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


class AddressParams(Block):
    """Address of a device; :class:`pipeline.remote.Address` defines the allowed values."""

    transport: Literal["ssh", "local"]
    host: str | None
    port: StrictInt | None
    ssh_config: Annotated[str, Field(min_length=1)] | None
    python: str | None
    folder: str
    connect_timeout_seconds: Annotated[StrictFloat, Field(gt=0, le=600)]

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if self.transport == "ssh" and self.host is None:
            raise ValueError("transport ssh needs host")
        if self.transport == "local" and (self.host, self.port, self.ssh_config) != (None, None, None):
            raise ValueError("transport local is this machine; make host, port and ssh_config null")
        try:
            self.address()
        except RemoteError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self

    def address(self) -> Address:
        """These settings as an Address. Raises RemoteError: a value is unsafe or out of range."""
        values = self.model_dump(exclude={"transport"})
        return Address(**values | {"python": self.python or "python3"})


class TargetParams(Block):
    """The whole of device.yaml."""

    address: AddressParams
    files: Annotated[list[str], Field(min_length=1)] | None
    timeout_minutes: Positive
    benchmark: BenchmarkParams
    budget: BudgetParams


def check_name(name: str) -> str:
    """Return ``name`` if a device and its folder can have it. Raises ParamsError: they cannot."""
    if not _NAME.fullmatch(name):
        raise ParamsError(
            f"device name {name!r} may hold only letters, digits, _ and -, 40 at most, a letter or digit first; "
            "choose another"
        )
    return name


def device_files(name: str) -> tuple[Path, Path, Path]:
    """device.yaml of a device, and what the stage measure writes: result.json, and the latency of every timed call."""
    return TARGETS / name / "device.yaml", TARGETS / name / "result.json", TARGETS / name / "samples.npz"


def remeasure(name: str) -> str:
    """The command that measures a device again if its result is out of date."""
    return f"dvc repro {TARGETS}/{name}/dvc.yaml"


def load_target(path: Path) -> TargetParams:
    """Read and check the settings of a device.

    Raises:
        ParamsError: the file is missing, is not YAML, or does not fit the schema.
    """
    return validated(TargetParams, read_yaml(path), str(path))


def find_target(name: str) -> TargetParams:
    """The settings of the device of this name.

    Raises:
        ParamsError: there is no such device, or its settings are wrong.
    """
    path, *_ = device_files(check_name(name))
    if not path.exists():
        known = sorted(other.parent.name for other in TARGETS.glob("*/device.yaml"))
        there = f"there are {', '.join(known)}" if known else "there is no device yet"
        raise ParamsError(f"{path} does not exist, {there}; write it with `make target NAME={name} HOST=user@host`")
    return load_target(path)


def read_index(path: Path = TARGET_INDEX) -> dict[str, ShownResult]:
    """The devices whose results are in the report, by name.

    Raises:
        DataError: the file is missing or is not such an index.
    """
    remedy = f"restore it with `git checkout {TARGET_INDEX}`, or write {{}} into it and show the devices again"
    try:
        index = TypeAdapter(dict[str, ShownResult]).validate_python(read_json(path, remedy))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{path} is damaged ({brief(where)}: {brief(first['msg'])}); {remedy}") from None
    for name in index:
        if not _NAME.fullmatch(name):
            raise DataError(f"{path} has a damaged entry {brief(repr(name))}; {remedy}")
    return index


def enter_result(name: str, budget: BudgetParams) -> None:
    """Put the device's present result and budget into the index.

    Raises:
        DataError: it was not measured, or the result or the index is damaged.
        LineageError: the samples beside it are of another measurement.
    """
    (_, path, samples), remedy = device_files(name), f"run `{remeasure(name)}` to make it"
    for file in (path, samples):
        if not file.is_file():
            raise DataError(f"{file} does not exist; {remedy}")
    result = Measurement.read(path, f"{remedy} anew")
    check_lineage(path, {"samples": result.samples_sha256}, {"samples": sha256_file(samples)}, f"{remedy} anew")
    entry = ShownResult(result_sha256=sha256_file(path), budget=budget)
    CHECKPOINTS.mkdir(exist_ok=True)
    with FileLock(CHECKPOINTS / "targets.lock"):  # devices may be measured at the same time, each by its own dvc
        index = read_index() | {name: entry}
        write_json(TARGET_INDEX, {name: index[name].model_dump() for name in sorted(index)})
