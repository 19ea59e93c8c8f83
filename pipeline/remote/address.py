"""Where a device is, checked so that no part of it can be taken for an option or for a command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.remote.errors import RemoteError

# A name, an alias of the ssh config, or an IPv4 or IPv6 address, perhaps with a user.
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._+-]*@)?[A-Za-z0-9_:][A-Za-z0-9._:-]*")
_PATH = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+@,=-]*")

_LOCAL_PATH = re.compile(r"[^-~\0\n][^\0\n]*")


@dataclass(frozen=True)
class Address:
    """A device.

    Attributes:
        host: name, ``user@name`` or alias of the ssh config; None is this machine.
        port: of its ssh server; None leaves it to the ssh config.
        ssh_config: file to use in place of ~/.ssh/config.
        python: of the device, 3.10 or newer with numpy; on this machine "python3" is the one that runs this program.
        folder: of bundles and runs; relative to the home folder there, or absolute. Runs that share it take turns.
        connect_timeout_seconds: for the connection and for every answer to a short question.

    Raises:
        RemoteError: a value that could be taken for something else, or is out of range.
    """

    host: str | None = None
    port: int | None = None
    ssh_config: str | None = None
    python: str = "python3"
    folder: str = ".cache/energykd"
    connect_timeout_seconds: float = 15

    def __post_init__(self) -> None:
        if self.host is not None and not _HOST.fullmatch(self.host):
            raise RemoteError(
                f"host {self.host!r} is no host name; use letters, digits and ._:- with a letter or digit first, "
                "as in pi@raspberrypi.local, or an alias of the ssh config."
            )
        if self.port is not None and not 0 < self.port < 65536:
            raise RemoteError(f"port {self.port} of {self.name} does not exist; use 1 to 65535.")
        for key, value in (("python", self.python), ("folder", self.folder)):
            # No shell reads the paths of this machine.
            plain = _PATH if self.host is not None else _LOCAL_PATH
            if not plain.fullmatch(value) or ".." in value.split("/"):
                raise RemoteError(
                    f"{key} {value!r} of {self.name} is no plain path; use letters, digits and ._/+@,=- without `..`, "
                    "relative to the home folder there or absolute."
                )
        if self.ssh_config is not None and not Path(self.ssh_config).expanduser().is_file():
            raise RemoteError(f"ssh_config {self.ssh_config} of {self.name} does not exist; name a file that does.")
        if not self.connect_timeout_seconds > 0:
            raise RemoteError(
                f"connect_timeout_seconds of {self.name} is {self.connect_timeout_seconds}; use a number above 0."
            )

    @property
    def name(self) -> str:
        """For messages."""
        return "this machine" if self.host is None else self.host
