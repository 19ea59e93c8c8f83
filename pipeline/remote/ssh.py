"""Connection to a device with the system's ssh and the user's configuration, keys, agent and jump hosts.

Files are sent through standard input and output, because the quoting of remote names in scp depends on its version,
and scp reports a full disk only as "Failure".
"""

import math
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipeline.portable.text import brief
from pipeline.remote.address import Address
from pipeline.remote.errors import LinkError, RemoteError

_SSH_FAILED = 255
_ALIVE_SECONDS, _ALIVE_COUNT = 5, 4
# Messages of ssh for permanent errors; the first match gives the error sentence.
_SENTENCES = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "{name} shows another host key than the known one, so it was reinstalled or another machine answers for it; "
        "if you know that it was reinstalled, remove the old key with `ssh-keygen -R` and run `ssh {name}` once."
    ),
    "Host key verification failed|host key is known": (
        "the host key of {name} is unknown; run `ssh {name}` once, compare the fingerprint and accept it."
    ),
    r"Permission denied \((?=[^)]*publickey)": (
        "{name} refused the login without a password; install your key with `ssh-copy-id {name}`."
    ),
    r"Permission denied \(([^)]*)\)": (
        "{name} takes no keys, only {found}; allow PubkeyAuthentication in its sshd_config and install your key there."
    ),
    "Too many authentication failures": (
        "{name} refused all keys of the agent; name the right one with IdentityFile in the ssh config."
    ),
    "Could not resolve hostname": (
        "the name {name} is not known; check its spelling and the network's DNS, or give an address."
    ),
    r".*(?:onfiguration option|Bad owner or permissions).*": (
        "the ssh config is refused, so {name} is out of reach ({found}); correct it."
    ),
}


class SshTransport:
    """Starts commands on ``address.host`` without prompts, with known host keys only and with time limits."""

    def __init__(self, address: Address) -> None:
        assert address.host is not None  # noqa: S101
        self.name = address.host
        self.python = address.python
        self._words = ssh_words(address)

    def open(self, words: Sequence[str], stdin: IO[bytes] | int, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
        # Login scripts may change the folder; every shell knows this way home.
        command = [*self._words, f"cd; {shlex.join(words)}"]
        try:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # A jump host does not inherit BatchMode, but without a terminal it cannot prompt either.
                start_new_session=True,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},
            )
        except FileNotFoundError:
            raise RemoteError(f"ssh is not installed here, so {self.name} is out of reach; install it.") from None

    def failure(self, code: int, stderr: str) -> RemoteError | None:
        return explain(self.name, stderr) if code == _SSH_FAILED else None


def ssh_words(address: Address) -> list[str]:
    """The ssh command without the command for the device."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "ConnectTimeout": str(math.ceil(address.connect_timeout_seconds)),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": str(_ALIVE_SECONDS),
        "ServerAliveCountMax": str(_ALIVE_COUNT),
        # An alias can set these for interactive logins, and their output would mix with the messages.
        "RemoteCommand": "none",
        "LogLevel": "ERROR",
    }
    words = ["ssh", "-T"]
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    if address.ssh_config is not None:
        words += ["-F", str(Path(address.ssh_config).expanduser())]
    if address.port is not None:
        words += ["-p", str(address.port)]
    return [*words, "--", str(address.host)]


def explain(name: str, stderr: str) -> RemoteError:
    """Convert the standard error of ssh to an error with one sentence."""
    for pattern, sentence in _SENTENCES.items():
        if match := re.search(pattern, stderr):
            return RemoteError(sentence.format(name=name, found=brief(match.group(match.lastindex or 0))))
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1].rstrip(".") if lines else "the connection was closed"
    return LinkError(f"{name} cannot be reached ({brief(last)}); check that it is on, its address and its port.")
