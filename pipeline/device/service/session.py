"""The state of one run on the device: one folder below the bundle's, kept until the client has fetched the result.

FOLDER/lock, lock.json               who measures now
FOLDER/<sha256>/bundle.pyz           the bundle
FOLDER/<sha256>/<run>/begun.json     in which uptime of the device
                      progress.json  how far the run is
                      log.txt        what it wrote
                      files/         extracted models and inputs, until its end
                      samples.npz, result.json
                      outcome.json   how it ended; written last
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.device.errors import DeviceError
from pipeline.device.service.files import read_json, write_atomically
from pipeline.device.service.lock import boot_id

RESULT = "result.json"
SAMPLES = "samples.npz"
BUNDLE = "bundle.pyz"

FINISHED, FAILED, DIED = "finished", "failed", "died"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{8,64}")
_LOG_BYTES = 4096


class Session:
    """Files of one run.

    Args:
        folder: of this program on the device.
        bundle: SHA-256 of the bundle.
        run: hexadecimal id, chosen by the client.

    Raises:
        DeviceError: not such a hash or id.
    """

    def __init__(self, folder: Path, bundle: str, run: str) -> None:
        if not _SHA256.fullmatch(bundle):
            raise DeviceError(f"{bundle!r} is not a sha256 of a bundle; give its 64 hexadecimal digits.")
        if not _RUN.fullmatch(run):
            raise DeviceError(f"{run!r} is not a run's id; use 8 to 64 hexadecimal digits.")
        self.folder = folder
        self.bundle = bundle
        self.run = run
        self.path = folder / bundle / run
        self.archive = folder / bundle / BUNDLE
        self.log = self.path / "log.txt"
        self.files = self.path / "files"
        self._progress = self.path / "progress.json"
        self._begun = self.path / "begun.json"
        self._outcome = self.path / "outcome.json"

    def create(self) -> None:
        """Begin a run.

        Raises:
            OSError: it has begun before, or the folder cannot be written.
        """
        self.path.mkdir()
        write_atomically(self._begun, json.dumps({"boot": boot_id()}).encode())

    def begun_in(self) -> str | None:
        """The ``boot_id`` when the run began."""
        return (read_json(self._begun) or {}).get("boot")

    def write_progress(self, done: int, total: int, label: str) -> None:
        write_atomically(self._progress, json.dumps({"done": done, "total": total, "label": label}).encode())

    def progress(self) -> dict[str, Any] | None:
        return read_json(self._progress)

    def write_outcome(self, status: str, **details: Any) -> None:
        """Say how the run ended; the first to do so is right."""
        if self.outcome() is None:
            write_atomically(self._outcome, json.dumps({"status": status, **details}).encode())

    def outcome(self) -> dict[str, Any] | None:
        return read_json(self._outcome)

    def drop_files(self) -> None:
        """Remove what was extracted; the run's answers stay."""
        shutil.rmtree(self.files, ignore_errors=True)

    def last_words(self) -> str:
        """The last line in the run's log, for a sentence."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log.stat().st_size - _LOG_BYTES, 0))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        lines = [line.strip() for line in lines if line.strip()]
        return lines[-1][:300] if lines else "it wrote nothing"


def drop_leftovers(folder: Path) -> None:
    """Remove what runs have extracted that were killed; only for the one who holds the lock of ``folder``."""
    for bundle in bundle_folders(folder):
        for files in bundle.glob("*/files"):
            shutil.rmtree(files, ignore_errors=True)


def bundle_folders(folder: Path) -> list[Path]:
    """The folders of all bundles on the device."""
    return [path for path in folder.iterdir() if _SHA256.fullmatch(path.name)] if folder.is_dir() else []
