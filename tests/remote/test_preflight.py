"""The questions to a device before anything is copied to it, on this machine and with Pythons of all ages."""

from __future__ import annotations

import ast
import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipeline.device.service.run_folder import read_line
from pipeline.portable.files import sha256_file
from pipeline.remote import Address, LinkError, RemoteError, run_bundle, scripts, transport
from pipeline.remote.device import Device
from pipeline.remote.transport import LocalTransport, converse
from tests.remote.server import refusal, running

OLD_PYTHONS = [
    path
    for version in ("2.7", "3.6", "3.7", "3.8", "3.9")
    for path in sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))
]


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return Address(folder=str(tmp_path / "device"))


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_question_is_written_for_any_python() -> None:
    tree = ast.parse(scripts.PREFLIGHT, feature_version=(3, 4))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr)]


@pytest.mark.parametrize("python", OLD_PYTHONS or [None], ids=lambda path: path.name if path else "none")
def test_an_old_python_is_refused(bundle: Path, address: Address, python: Path | None, tmp_path: Path) -> None:
    if python is None:
        pytest.skip("no old Python beside this one")
    sentence = refusal(bundle, dataclasses.replace(address, python=str(python)), tmp_path / "out")
    version = python.name.removeprefix("python")
    assert f"{python} on this machine is Python {version}." in sentence
    assert "too old for the benchmark, which needs 3.10 or newer" in sentence
    assert not (tmp_path / "device").exists()


def test_a_python_that_says_it_is_old_is_refused(bundle: Path, address: Address, tmp_path: Path) -> None:
    claim = "import sys; sys.version_info = (3, 8, 10); exec(sys.argv[2])"
    fake = script(tmp_path / "python3", f"exec {sys.executable} -c '{claim}' \"$@\"")
    sentence = refusal(bundle, dataclasses.replace(address, python=fake), tmp_path / "out")
    assert "is Python 3.8.10, too old for the benchmark" in sentence


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo hello", "gave no answer to"),
        (
            "echo 'some reason' >&2; exit 1",
            r"ended with exit code 1 \(some reason\); check it and the login",
        ),
        ("exit 127", "has no program"),
        ("exit 9", "ended with exit code 9 .it wrote no error"),
    ],
)
def test_a_program_that_is_no_python_is_refused(
    bundle: Path, address: Address, body: str, words: str, tmp_path: Path
) -> None:
    fake = dataclasses.replace(address, python=script(tmp_path / "python3", body))
    with pytest.raises(RemoteError, match=words):
        run_bundle(bundle, fake, tmp_path / "out", timeout_seconds=20)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sentence = refusal(bundle, Address(folder=str(tmp_path / "file/device")), tmp_path / "out")
    advice = "set address.folder to another, or HOME for the stage benchmark."
    assert f"{tmp_path}/file/device on this machine cannot be written; {advice}" in sentence


def test_a_home_folder_that_is_not_there_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    sentence = refusal(bundle, Address(), tmp_path / "out")
    assert sentence == f"this machine has no home folder {tmp_path}/gone; set HOME to a folder that can be written."


def test_a_file_system_without_locks_is_not_taken_for_a_busy_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    asked = {"folder": str(tmp_path), "sha256": "0", "run": "0", "modules": [], "wait_seconds": 0}
    answers: list[dict[str, object]] = []
    exec(scripts.PREFLIGHT, {"P": asked, "send": lambda **values: answers.append(values)})  # noqa: S102
    assert [answer["locked"] for answer in answers] == [False]


def test_a_damaged_bundle_is_refused_here(bundle: Path, address: Address, tmp_path: Path) -> None:
    bundle.write_bytes(bundle.read_bytes()[:-100])
    with pytest.raises(RemoteError, match="is no"):
        run_bundle(bundle, address, tmp_path / "out", timeout_seconds=20)


@pytest.mark.parametrize(
    ("silence", "limit", "words"), [(0.3, 30, "did not answer within 0.3 s"), (30, 0.3, "before its time limit")]
)
@pytest.mark.parametrize("program", ["/bin/sleep", "/usr/bin/yes"])
def test_a_device_that_says_nothing_of_use_is_given_up(
    address: Address, program: str, silence: float, limit: float, words: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(LinkError, match=words):
        local = LocalTransport(dataclasses.replace(address, python=program))
        list(converse(local, ["20"], silence_seconds=silence, deadline=begun + limit))
    assert time.monotonic() - begun < 5


def test_bytes_that_move_are_a_sign_of_life(address: Address, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\0" * 1000)
    reads = "import sys, time\nfor _ in range(10): sys.stdin.buffer.raw.read(100); time.sleep(0.08)"
    sent: list[int] = []
    words = ["-c", reads]
    local = LocalTransport(address)
    deadline = time.monotonic() + 30
    list(converse(local, words, silence_seconds=0.5, deadline=deadline, source=source, on_sent=sent.append))
    assert sent[-1] == 1000
    assert sent == sorted(sent)
    assert len(sent) > 2


def test_nothing_is_imported_to_see_whether_it_is_there(tmp_path: Path, make_python: Callable[..., Path]) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('imported')")
    asked = {"folder": str(tmp_path), "sha256": "0", "run": "0", "modules": ["onnxruntime", "nope"], "wait_seconds": 0}
    words = scripts.words(scripts.PREFLIGHT, **asked)
    environment = {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    ended = subprocess.run([make_python(), *words], capture_output=True, text=True, check=True, env=environment)
    assert '"onnxruntime": true' in ended.stdout
    assert '"nope": false' in ended.stdout


def test_a_bundle_of_which_only_a_part_arrives_is_not_installed(bundle: Path, tmp_path: Path) -> None:
    words = scripts.words(scripts.INSTALL, folder=str(tmp_path / "device"), sha256="0" * 64, run="0")
    half = bundle.read_bytes()[: bundle.stat().st_size // 2]
    ended = subprocess.run([sys.executable, *words], input=half, capture_output=True, check=True)
    [answer] = [values for line in ended.stdout.decode().splitlines() if (values := read_line(line)) is not None]
    assert answer["received"] == len(half)
    assert "wrong" in answer
    assert list((tmp_path / "device").iterdir()) == []


def test_this_machine_is_measured_in_the_folder_below_home(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home of $ann"
    home.mkdir()
    (home / "json.py").write_text("raise SystemExit(9)")  # a file of the user, which no program of ours imports
    monkeypatch.setenv("HOME", str(home))
    steps: list[tuple[int, int, str]] = []
    result = run_bundle(
        bundle, Address(), tmp_path / "out", timeout_seconds=60, on_progress=lambda *step: steps.append(step)
    )
    assert result.plan["variants"][0]["path"] == "bundle/models/tiny.onnx"
    assert (home / ".cache/energykd/lock").is_file()
    assert steps[0] == (0, 0, "asking this machine")
    assert steps[-1] == (0, 0, "fetching the result")
    totals = {total for _, total, _ in steps if total}
    assert len(totals) == 1
    assert str(tmp_path) not in (tmp_path / "out/result.json").read_text()


def device_of(bundle: Path, address: Address) -> Device:
    return Device(address, bundle, sha256_file(bundle), "0" * 8, time.monotonic() + 30)


@pytest.mark.parametrize(
    "noise",
    [
        "printf hello; printf hello >&2",
        """printf '{"locked": true}\\n{"energykd": '""",
        """printf 'energykd {"'""",
        "head -c 9000 /dev/urandom",
        "head -c 1000000 /dev/zero",
        "yes | head -c 1000000",
        "trap 'printf bye; printf bye >&2' EXIT",
    ],
)
def test_text_of_login_scripts_is_no_part_of_an_answer(
    bundle: Path, address: Address, noise: str, tmp_path: Path
) -> None:
    python = script(tmp_path / "python3", f'{noise}\n{sys.executable} "$@"')
    device = device_of(bundle, dataclasses.replace(address, python=python))
    assert device.facts(["numpy"])["modules"] == {"numpy": True}
    device.install(lambda sent: None)
    assert (tmp_path / "device" / device.sha256 / "bundle.pyz").read_bytes() == bundle.read_bytes()


def test_a_whole_run_bears_text_without_a_final_newline(bundle: Path, address: Address, tmp_path: Path) -> None:
    python = script(tmp_path / "python3", f'printf hello; exec {sys.executable} "$@"')
    run_bundle(bundle, dataclasses.replace(address, python=python), tmp_path / "out", timeout_seconds=60)


def test_a_program_that_login_scripts_leave_behind_does_not_hold_up_the_answer(
    bundle: Path, address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_QUIT_SECONDS", 0.1)
    left = tmp_path / "left"
    python = script(tmp_path / "python3", f'sleep 60 & echo $! > {left}; {sys.executable} "$@"; wait')
    try:
        assert device_of(bundle, dataclasses.replace(address, python=python)).facts([])["locked"] is False
        assert running(int(left.read_text()))
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)


def test_login_scripts_that_read_what_is_sent_are_named(bundle: Path, address: Address, tmp_path: Path) -> None:
    python = script(tmp_path / "python3", f'dd bs=1 count=9 status=none of=/dev/null; exec {sys.executable} "$@"')
    sentence = refusal(bundle, dataclasses.replace(address, python=python), tmp_path / "out")
    assert "only a part of the bundle arrived on this machine, so it was removed there" in sentence
    assert not list((tmp_path / "device").iterdir())


def test_the_error_of_the_program_is_found_within_the_text_of_login_scripts(
    bundle: Path, address: Address, tmp_path: Path
) -> None:
    long = "yes warning | head -c 100000 >&2"
    python = script(tmp_path / "python3", f"{long}; echo 'error: the reason.' >&2; echo bye >&2; exit 2")
    with pytest.raises(RemoteError, match=r"^this machine: the reason\.$"):
        device_of(bundle, dataclasses.replace(address, python=python)).facts([])
