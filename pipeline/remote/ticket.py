"""The id of a run, kept beside its result's place until that has arrived, so that a new client finds the run again."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.device.files import read_json
from pipeline.remote.address import Address

NAME = ".run.json"


@dataclass(frozen=True)
class Ticket:
    """A run that was started, or is about to be.

    Attributes:
        run: hexadecimal id.
        kept: an earlier client left it, and its run may be on the device.
    """

    path: Path
    run: str
    kept: bool

    @classmethod
    def take(cls, destination: Path, bundle: str, address: Address) -> Ticket:
        """The ticket in ``destination`` if it is for this bundle on this device, else a new one."""
        path = destination / NAME
        purpose = {"bundle": bundle, "host": address.host, "port": address.port, "folder": address.folder}
        found = read_json(path) or {}
        run = found.pop("run", None)
        if isinstance(run, str) and found == purpose:
            return cls(path, run, kept=True)
        run = secrets.token_hex(16)
        write_json(path, {"run": run, **purpose})
        return cls(path, run, kept=False)

    def drop(self) -> None:
        """Forget the run: its result has arrived, or never will."""
        self.path.unlink(missing_ok=True)
