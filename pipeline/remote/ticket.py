"""The id of a run, kept beside its result's place until that has arrived, so that a new client finds the run again."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from pipeline.device.service.files import read_json
from pipeline.remote.address import Address
from pipeline.store.tables import write_json

NAME = ".run.json"


@dataclass(frozen=True)
class Ticket:
    """A run that was started, or is about to be.

    Attributes:
        run: hexadecimal id.
        kept: an earlier client left it, and its run may be on the device.
        replaced: bundle and id of an earlier client's run of something else, whose result nobody will fetch.
    """

    path: Path
    run: str
    kept: bool
    replaced: tuple[str, str] | None = None

    @classmethod
    def take(cls, destination: Path, bundle: str, address: Address) -> Ticket:
        """The ticket in ``destination`` if it is for this bundle on this device, else a new one."""
        path = destination / NAME
        place = {"host": address.host, "port": address.port, "folder": address.folder}
        found = read_json(path) or {}
        earlier, run = str(found.pop("bundle", "")), str(found.pop("run", ""))
        if run and found == place and earlier == bundle:
            return cls(path, run, kept=True)
        replaced = (earlier, run) if run and found == place else None
        run = secrets.token_hex(16)
        write_json(path, {"run": run, "bundle": bundle, **place})
        return cls(path, run, kept=False, replaced=replaced)

    def drop(self) -> None:
        """Forget the run: its result has arrived, or never will."""
        self.path.unlink(missing_ok=True)
