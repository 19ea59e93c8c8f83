"""The folder of one run on the device, kept until the client has fetched the result, and the lines for the client.

FOLDER/lock, lock.json               lock and its holder
FOLDER/<sha256>/bundle.pyz           bundle
FOLDER/<sha256>/<run>/begun.json     boot id at the start of the run
                      progress.json  finished and all steps
                      log.txt        standard output and standard error
                      files/         extracted models and inputs, removed at the end
                      samples.npz, result.json
                      outcome.json   status and message at the end; written last
"""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.device.errors import DeviceError
from pipeline.device.service.bundle import BUNDLE
from pipeline.device.service.lock import boot_id
from pipeline.portable.files import read_object, write_object
from pipeline.portable.text import printable

RESULT = "result.json"
SAMPLES = "samples.npz"
FINISHED, FAILED, DIED = "finished", "failed", "died"
# Login scripts may write to standard output too, and not always whole lines, so a message for the client begins a line
# of its own with this prefix.
LINE_START = "energykd "
MESSAGE = f"\n{LINE_START}%s\n"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{8,64}")
_LOG_BYTES = 4096


class RunFolder:
    """Files of one run.

    Args:
        folder: folder of this program on the device.
        bundle: SHA-256 of the bundle.
        run: hexadecimal id, chosen by the client.
    """

    def __init__(self, folder: Path, bundle: str, run: str) -> None:
        if not _SHA256.fullmatch(bundle):
            raise DeviceError(f"{bundle!r} is not a sha256 of a bundle; give its 64 hexadecimal digits.")
        if not _RUN.fullmatch(run):
            raise DeviceError(f"{run!r} is not a run's id; use 8 to 64 hexadecimal digits.")
        self.folder, self.bundle, self.id = folder, bundle, run
        self.path = folder / bundle / run
        self.archive = folder / bundle / BUNDLE
        self.log = self.path / "log.txt"
        self.files = self.path / "files"
        self._progress = self.path / "progress.json"
        self._begun = self.path / "begun.json"
        self._outcome = self.path / "outcome.json"

    def create(self) -> None:
        """Create the folder of a new run."""
        self.path.mkdir()
        write_object(self._begun, {"boot": boot_id()})

    def boot(self) -> str | None:
        """``boot_id`` at the start of the run."""
        return (read_object(self._begun) or {}).get("boot")

    def write_progress(self, done: int, total: int, label: str) -> None:
        write_object(self._progress, {"done": done, "total": total, "label": label})

    def progress(self) -> dict[str, Any] | None:
        return read_object(self._progress)

    def write_outcome(self, status: str, **details: Any) -> None:
        """Write the outcome of the run, unless there is one."""
        if self.outcome() is None:
            write_object(self._outcome, {"status": status, **details})

    def outcome(self) -> dict[str, Any] | None:
        return read_object(self._outcome)

    def remove_files(self) -> None:
        """Remove the extracted files, not the result."""
        shutil.rmtree(self.files, ignore_errors=True)

    def last_log_line(self) -> str:
        """Last line of the log, for error sentences."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log.stat().st_size - _LOG_BYTES, 0))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "the log is empty"


def bundle_folders(folder: Path) -> list[Path]:
    """The folders of all bundles on the device."""
    return [path for path in folder.iterdir() if _SHA256.fullmatch(path.name)] if folder.is_dir() else []


def send(values: Mapping[str, Any]) -> None:
    """Write one message for the client and flush it; BrokenPipeError if the connection is closed."""
    sys.stdout.write(MESSAGE % json.dumps(values))
    sys.stdout.flush()


def read_line(line: str) -> dict[str, Any] | None:
    """Read a line of ``send``, with control characters escaped; None for any other line."""
    if not line.startswith(LINE_START):
        return None
    try:
        values = printable(json.loads(line.removeprefix(LINE_START)))
    except (RecursionError, ValueError):
        return None
    return values if isinstance(values, dict) else None
