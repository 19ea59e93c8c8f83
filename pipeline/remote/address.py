"""The address of a device, validated so that no part can act as an option or a command."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.remote.errors import RemoteError

# A host name, an alias of the ssh config, or an IPv4 or IPv6 address, optionally with a user.
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._+-]*@)?[A-Za-z0-9_:][A-Za-z0-9._:-]*")
_PATH = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+@,=-]*")

_LOCAL_PATH = re.compile(r"[^-~\0\n][^\0\n]*")


@dataclass(frozen=True)
class Address:
    """Address and settings of a device.

    Attributes:
        host: name, ``user@name`` or alias of the ssh config; None is this machine.
        port: port of the ssh server; None uses the ssh config.
        ssh_config: file to use in place of ~/.ssh/config.
        python: Python 3.10 or newer with numpy on the device; "python3" on this machine is the running Python.
        folder: folder of bundles and runs, absolute or relative to the home folder. It has one lock for all its runs.
        connect_timeout_seconds: time limit of the connection and of each short request.

    Raises:
        RemoteError: a value is unsafe or out of range.
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
            # Paths on this machine are not passed through a shell.
            pattern = _PATH if self.host is not None else _LOCAL_PATH
            if not pattern.fullmatch(value) or ".." in value.split("/"):
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
        """Name of the device in messages."""
        return "this machine" if self.host is None else self.host
