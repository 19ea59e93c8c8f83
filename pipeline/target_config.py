"""Typed schema of targets/<device>/device.yaml, read and refused as params.yaml is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import BenchmarkParams, Block, BudgetParams, Positive, read_yaml, validated
from pipeline.errors import ParamsError
from pipeline.remote import Address, RemoteError
from pipeline.store.paths import TARGETS
from pipeline.targets import check_name, device_file


class AddressParams(Block):
    """How a device is reached; :class:`pipeline.remote.Address` says what each value may be."""

    transport: Literal["ssh", "local"]
    host: str | None
    port: int | None
    ssh_config: Annotated[str, Field(min_length=1)] | None
    python: str | None
    folder: str
    connect_timeout_seconds: Annotated[float, Field(gt=0, le=600)]

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
        """The same for the transport.

        Raises:
            RemoteError: a value could be taken for something else.
        """
        return Address(
            host=self.host,
            port=self.port,
            ssh_config=self.ssh_config,
            python=self.python or "python3",
            folder=self.folder,
            connect_timeout_seconds=self.connect_timeout_seconds,
        )


class TargetParams(Block):
    """The whole of device.yaml."""

    address: AddressParams
    files: Annotated[list[str], Field(min_length=1)] | None
    timeout_minutes: Positive
    benchmark: BenchmarkParams
    budget: BudgetParams


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
    path = device_file(check_name(name))
    if not path.exists():
        known = sorted(other.parent.name for other in TARGETS.glob("*/device.yaml"))
        there = f"there are {', '.join(known)}" if known else "there is no device yet"
        raise ParamsError(f"{path} does not exist, {there}; write it with `make target NAME={name} HOST=user@host`")
    return load_target(path)
