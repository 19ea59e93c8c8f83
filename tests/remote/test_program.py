"""``python3 bundle.pyz``: measuring in the foreground."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.device.service import main
from pipeline.device.service.lock import DeviceLock, Holder, measuring_processes
from pipeline.portable.files import sha256_file
from pipeline.remote import BundleContent
from tests.remote.conftest import write
from tests.remote.server import wait_for


def words(bundle: Path, folder: Path, python: Path | str = sys.executable) -> list[str]:
    out = str(folder / "out")
    return [str(python), str(bundle), "--out", out, "--folder", str(folder / "device")]


def test_it_measures_shows_progress_and_writes_the_result(bundle: Path, tmp_path: Path) -> None:
    ended = subprocess.run(words(bundle, tmp_path), capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["bundle_sha256"] == sha256_file(bundle)
    assert result["card"] == {"labels": ["a", "b", "c", "d"]}
    header, row, written = ended.stdout.splitlines()
    assert header.split() == ["file", "runtime", "executed", "p50", "ms", "p90", "ms", "verdict"]
    assert row.split()[:3] == ["ort", "onnxruntime", "fp32"]
    assert written.startswith("written to ")
    assert ended.stderr.splitlines()[-1].endswith("done")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["result.json", "samples.npz"]
    assert sorted(path.name for path in (tmp_path / "device").iterdir()) == ["lock", "lock.json"]


def test_only_the_bundle_is_used_of_our_code_and_no_path_of_the_device_is_told(
    bundle: Path, tmp_path: Path, make_python: Callable[..., Path]
) -> None:
    python = make_python("*")
    subprocess.run(
        words(bundle, tmp_path, python), capture_output=True, check=True, cwd="/", env={"HOME": str(tmp_path)}
    )
    text = (tmp_path / "out/result.json").read_text()
    assert '"path": "bundle/models/tiny.onnx"' in text
    assert '"inputs": "bundle/inputs/tiny.npy"' in text
    assert str(tmp_path) not in text
    assert "device/here" not in text


def test_it_is_refused_while_another_run_holds_the_device(bundle: Path, tmp_path: Path) -> None:
    descriptor = DeviceLock(tmp_path / "device").take(Holder.now("ann@laptop", "0" * 64, "run"))
    ended = subprocess.run(words(bundle, tmp_path), capture_output=True, text=True, check=False)
    os.close(descriptor)
    assert ended.returncode == 3
    assert ended.stderr.startswith("error: locked by ann@laptop's run of bundle 00000000 since ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_writes_nothing_and_does_not_hold_up_the_next(
    content: BundleContent, bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    long = write(tmp_path / "long.pyz", content, min_seconds=40)
    process = subprocess.Popen(
        words(long, tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        # Shells let what they start in the background ignore an interrupt, and so these tests perhaps.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    device = tmp_path / "device"
    wait_for(lambda: measuring_processes(device), "the first worker")
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").iterdir())
    if number != signal.SIGKILL:
        assert measuring_processes(device) == []
        assert not (device / "here").exists()
    subprocess.run(words(bundle, tmp_path), capture_output=True, check=True)
    assert measuring_processes(device) == []
    assert not (device / "here").exists()


def test_a_damaged_bundle_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    bundle.write_bytes(content.replace(b"\x93NUMPY", b"\x93NUMPX", 1))
    ended = subprocess.run(words(bundle, tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "device").write_text("a file in the way")
    ended = subprocess.run(words(bundle, tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


def test_outside_a_bundle_it_says_what_to_do() -> None:
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.device"], capture_output=True, text=True, check=False, cwd=root
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "run it as `python3 bundle.pyz`" in ended.stderr


@pytest.mark.parametrize(
    ("closed", "stream", "words", "code"),
    [(">&-", "stdout", ["--self-test"], 0), ("2>&-", "stderr", ["--out", "/no/such/folder"], 2)],
)
def test_a_closed_output_ends_nothing(
    bundle: Path, tmp_path: Path, closed: str, stream: str, words: list[str], code: int
) -> None:
    folder = ["--folder", str(tmp_path / "device")] if stream == "stdout" else ["--folder", str(bundle)]
    command = shlex.join([sys.executable, str(bundle), *folder, *words])
    ended = subprocess.run(["/bin/sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_a_folder_whose_name_the_terminal_cannot_show_is_shown_in_escapes(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(bundle), "--self-test", "--folder", str(tmp_path / "\N{GRINNING FACE}")]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "\\U0001f600 has " in ended.stdout


def test_a_progress_that_nobody_reads_any_more_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    main._progress_on_stderr()(1, 2, "round 1")
    assert sys.stderr.getvalue() == "1/2 round 1\n"  # type: ignore[attr-defined]


def test_the_processes_of_a_folder_whose_name_is_no_text_are_looked_for(tmp_path: Path) -> None:
    assert measuring_processes(tmp_path / "\udcff") == []
