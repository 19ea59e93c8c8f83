from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.device.machine import tuning
from pipeline.device.machine.tuning import put_back, tuned
from tests.device.fake_system import write

FOLDER = "sys/devices/system/cpu/cpufreq"
RECOVERED = "an earlier measurement was killed before it restored the CPU governor; it is restored now."
PROGRAM = """
import signal, sys, time
from pathlib import Path
from pipeline.device.machine import tuning
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or under nohup
if sys.argv[3] == "unguarded":
    tuning._WATCHDOG = ""
with tuning.tuned(True, Path(sys.argv[1]), Path(sys.argv[2])):
    print("tuned", flush=True)
    for _ in range(600):  # Python answers a signal that comes just before a sleep only after it
        time.sleep(0.1)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for policy, governor in ((0, "ondemand"), (4, "schedutil")):
        write(root, f"{FOLDER}/policy{policy}/scaling_governor", f"{governor}\n")
        write(root, f"{FOLDER}/policy{policy}/scaling_available_governors", "ondemand schedutil performance\n")
    return root


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tuning.json"


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(root: Path, record: Path) -> Iterator[Start]:
    """Start a process that has tuned the device and waits."""
    started: list[subprocess.Popen[str]] = []

    def start(manner: str = "guarded") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(root), str(record), manner]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."})
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "tuned\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def governors(root: Path) -> list[str]:
    return [(root / FOLDER / f"policy{policy}/scaling_governor").read_text().strip() for policy in (0, 4)]


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_nothing_is_changed_or_written_unless_it_is_allowed(root: Path, record: Path) -> None:
    with tuned(False, root, record) as result:
        assert governors(root) == ["ondemand", "schedutil"]
    assert result == {"allowed": False, "changed": {}, "notes": []}
    assert not record.parent.exists()


def test_the_governors_are_set_and_put_back(root: Path, record: Path) -> None:
    with tuned(True, root, record) as result:
        assert governors(root) == ["performance", "performance"]
        assert sorted(result["changed"].values()) == [["ondemand", "performance"], ["schedutil", "performance"]]
    assert governors(root) == ["ondemand", "schedutil"]
    assert (result["notes"], record.read_text()) == ([], "")


def test_they_are_put_back_after_an_error(root: Path, record: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tuned(True, root, record):
        raise KeyboardInterrupt
    assert governors(root) == ["ondemand", "schedutil"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_they_are_put_back_by_a_process_that_is_asked_to_end(
    number: signal.Signals, root: Path, record: Path, start: Start
) -> None:
    process = start("unguarded")
    assert governors(root) == ["performance", "performance"]
    process.send_signal(number)
    process.wait(20)
    assert governors(root) == ["ondemand", "schedutil"]
    assert record.read_text() == ""


def test_after_a_kill_the_watching_process_puts_them_back(root: Path, record: Path, start: Start) -> None:
    process = start("guarded")
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert wait_for(lambda: governors(root) == ["ondemand", "schedutil"])
    assert wait_for(lambda: record.read_text() == "")


@pytest.mark.parametrize("allowed", [True, False])
def test_after_a_kill_the_next_run_puts_them_back(allowed: bool, root: Path, record: Path, start: Start) -> None:
    process = start("unguarded")
    process.kill()
    process.wait(20)
    assert governors(root) == ["performance", "performance"]
    with tuned(allowed, root, record) as result:
        assert governors(root) == (["performance", "performance"] if allowed else ["ondemand", "schedutil"])
    assert governors(root) == ["ondemand", "schedutil"]
    assert result["notes"] == [RECOVERED]
    assert put_back(record) == []


def test_a_run_that_still_goes_on_keeps_its_settings(root: Path, record: Path, start: Start) -> None:
    start("guarded")
    for allowed in (True, False):
        with tuned(allowed, root, record) as result:
            assert governors(root) == ["performance", "performance"]
        [note] = result["notes"]
        assert note.startswith("another measurement has tuned this device and still runs")
        assert result["changed"] == {}
    assert governors(root) == ["performance", "performance"]


def test_what_someone_else_has_set_meanwhile_is_left_alone(root: Path, record: Path) -> None:
    with tuned(True, root, record):
        write(root, f"{FOLDER}/policy0/scaling_governor", "powersave\n")
    assert governors(root) == ["powersave", "schedutil"]


def test_without_the_right_to_write_there_is_one_sentence_for_each_governor(
    root: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.write_text

    def refuse(path: Path, text: str, **options: str) -> int:
        if path.name == "scaling_governor":
            raise PermissionError(13, "Permission denied")
        return genuine(path, text, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    with tuned(True, root, record) as result:
        assert result["changed"] == {}
    assert len(result["notes"]) == 2
    assert all("was not changed (Permission denied); run with the right" in note for note in result["notes"])
    assert record.read_text() == ""


def test_what_cannot_be_put_back_is_said_and_kept_for_the_next_run(
    root: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.write_text

    def refuse(path: Path, text: str, **options: str) -> int:
        if text == "ondemand":
            raise PermissionError(13, "Permission denied")
        return genuine(path, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with tuned(True, root, record) as result:
            pass
    [note] = result["notes"]
    assert note.endswith("could not be restored to ondemand (Permission denied); set it yourself.")
    assert list(json.loads(record.read_text()).values()) == [["ondemand", "performance"]]
    assert wait_for(lambda: governors(root) == ["ondemand", "schedutil"])  # by the process that watches


@pytest.mark.parametrize(
    ("offered", "words"),
    [("ondemand powersave\n", "offers ondemand, powersave, but not performance"), (None, "values cannot be read")],
)
def test_a_governor_that_has_no_performance_is_left(offered: str | None, words: str, root: Path, record: Path) -> None:
    path = root / FOLDER / "policy0/scaling_available_governors"
    path.unlink() if offered is None else path.write_text(offered)
    with tuned(True, root, record) as result:
        assert governors(root) == ["ondemand", "performance"]
    assert words in result["notes"][0]


def test_a_device_without_governors_says_so(tmp_path: Path, record: Path) -> None:
    with tuned(True, tmp_path, record) as result:
        pass
    assert result["notes"] == ["the device was not tuned: no CPU governor was found."]


def test_a_record_that_was_cut_short_is_of_a_run_that_changed_nothing(root: Path, record: Path) -> None:
    record.parent.mkdir()
    record.write_text('{"/sys/devi')
    assert put_back(record) == []
    with tuned(True, root, record) as result:
        assert governors(root) == ["performance", "performance"]
    assert (governors(root), result["notes"], record.read_text()) == (["ondemand", "schedutil"], [], "")


def test_a_folder_that_cannot_be_written_is_one_sentence(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with tuned(True, root, tmp_path / "file" / "tuning.json") as result:
        assert governors(root) == ["ondemand", "schedutil"]
    assert "make its folder writable" in result["notes"][0]


def test_the_record_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENERGYKD_CACHE", str(tmp_path))
    assert tuning._record_path() == tmp_path / "energykd/tuning.json"
