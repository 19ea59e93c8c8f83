from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.remote import Address, LinkError, RemoteError
from pipeline.remote.ssh import SshTransport, explain, ssh_words


@pytest.mark.parametrize(
    "host",
    [
        "pi5",
        "pi@pi5",
        "pi@raspberrypi.local",
        "10.0.0.7",
        "user@fe80::1",
        "_gateway",
        "first.last@host-1.example.org",
    ],
)
def test_host_names_and_aliases_are_taken(host: str) -> None:
    words = ssh_words(Address(host))
    assert words[-2:] == ["--", host]


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch /tmp/x",
        "pi@-oProxyCommand=x",
        "-F",
        "pi5;reboot",
        "pi5 reboot",
        "$(reboot)",
        "`reboot`",
        "pi5|x",
        "pi5&",
        "pi5\n-oX",
        "pi5\n",
        "pi@x@y",
        "'pi5'",
        "%h",
        "pi*",
        "~root",
        "pi/5",
        "",
    ],
)
def test_hosts_that_could_be_options_or_commands_are_refused(host: str) -> None:
    with pytest.raises(RemoteError, match=r"^host .* is no host name; use letters, digits") as caught:
        Address(host)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["folder", "python"])
@pytest.mark.parametrize("value", ["-x", "a b", "$(x)", "a;b", "~/x", "../x", "a/../b", "", "x\n", "a'b", "a*"])
def test_paths_that_a_shell_could_read_differently_are_refused(key: str, value: str) -> None:
    with pytest.raises(RemoteError, match=rf"{key} .* of pi5 is no plain path"):
        Address("pi5", **{key: value})  # type: ignore[arg-type]


def test_paths_of_this_machine_may_hold_what_a_shell_would_read_differently() -> None:
    assert Address(folder="/home/ann/my $files").folder == "/home/ann/my $files"
    for value in ("-x", "~/x", "a/../b", "", "x\n"):
        with pytest.raises(RemoteError, match="of this machine is no plain path"):
            Address(folder=value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"port": 0}, "port 0 of pi5 does not exist"),
        ({"port": 65536}, "use 1 to 65535"),
        ({"ssh_config": "/no/such/file"}, "ssh_config /no/such/file of pi5 does not exist"),
        ({"connect_timeout_seconds": 0}, "connect_timeout_seconds of pi5 is 0"),
        ({"connect_timeout_seconds": float("nan")}, "connect_timeout_seconds of pi5 is nan"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RemoteError, match=words):
        Address("pi5", **values)


def test_ssh_neither_asks_nor_accepts_a_key_nor_waits_for_ever(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    words = ssh_words(Address("pi5", port=2222, ssh_config=str(config), connect_timeout_seconds=7.5))
    options = {words[i + 1] for i, word in enumerate(words) if word == "-o"}
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=8"} <= options
    assert any(option.startswith("ServerAliveInterval=") for option in options)
    assert words[words.index("-F") + 1] == str(config)
    assert words[words.index("-p") + 1] == "2222"
    assert words[-2:] == ["--", "pi5"]


def test_the_device_gets_each_word_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own shell reads the command there, so a fake ssh gives it to one."""
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/sh\nfor last; do :; done\ncd /\nexec sh -c "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    awkward = ["printf", "%s|", "a b", "$HOME", "`x`", "'", '"', "*", "\\", ";ls", "é"]
    with (tmp_path / "err").open("wb") as stderr:
        process = SshTransport(Address("pi5")).open(awkward, subprocess.DEVNULL, stderr)
    out, _ = process.communicate()
    assert out.decode() == "".join(f"{word}|" for word in awkward[2:])
    with (tmp_path / "err").open("wb") as stderr:
        out, _ = SshTransport(Address("pi5")).open(["pwd"], subprocess.DEVNULL, stderr).communicate()
    assert out.decode() == f"{tmp_path}\n"  # although login scripts went elsewhere


@pytest.mark.parametrize(
    ("stderr", "words", "passes"),
    [
        ("ssh: Could not resolve hostname pi5: Name or service not known\n", "the name pi5 is not known", False),
        ("ssh: connect to host pi5 port 22: Connection timed out\n", "pi5 cannot be reached .*timed out", True),
        ("ssh: connect to host pi5 port 22: No route to host\n", "pi5 cannot be reached", True),
        ("Connection timed out during banner exchange\n", "pi5 cannot be reached", True),
        ("client_loop: send disconnect: Broken pipe\n", "pi5 cannot be reached", True),
        ("", "pi5 cannot be reached .the connection was closed", True),
        ("pi@pi5: Permission denied (publickey,password).\n", "install your key with `ssh-copy-id pi5`", False),
        ("pi@pi5: Permission denied (password,keyboard-interactive).\n", "takes no keys, only password,keyb", False),
        ("Received disconnect: 2: Too many authentication failures\n", "refused all keys of the agent", False),
        ("config: line 3: Bad configuration option: hostt\nconfig: terminating\n", "ssh config is refused", False),
        ("No ED25519 host key is known for pi5 and you have requested strict checking.\n", "key of pi5 is unkn", False),
        ("Host key verification failed.\n", "the host key of pi5 is unknown", False),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n",
            "pi5 shows another host key",
            False,
        ),
    ],
)
def test_what_ssh_says_becomes_one_sentence(stderr: str, words: str, passes: bool) -> None:
    error = explain("pi5", stderr)
    assert isinstance(error, LinkError) is passes
    with pytest.raises(RemoteError, match=words):
        raise error
    assert "\n" not in str(error)
