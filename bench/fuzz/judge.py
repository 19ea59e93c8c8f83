"""What a case may do: work, or raise one of our own errors with one sentence, and leave nothing behind."""

from __future__ import annotations

import random
import resource
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.device.errors import DeviceError
from pipeline.errors import EnergyKDError
from pipeline.remote.errors import RemoteError
from pipeline.runtimes.errors import RuntimesError

OURS = (EnergyKDError, DeviceError, RemoteError, RuntimesError)
ACCEPTED, REFUSED, FAILED = "accepted", "refused", "failed"
HANG_SECONDS = 10.0
LONGEST_SENTENCE = 1000  # characters, the folder's name among them
MOST_MEMORY = 1 << 30  # bytes that one case may add to the peak


@dataclass(frozen=True)
class Target:
    """A reader of ours and the files it is fed.

    Attributes:
        seeds: makes the valid files' contents, once, in a folder for scratch.
        write: writes one case into ``folder / "in"``.
        read: reads it as the pipeline does; may write below ``folder / "out"``, which must be empty if it refuses.
    """

    name: str
    what: str
    seeds: Callable[[Path], Any]
    write: Callable[[random.Random, Any, Path], None]
    read: Callable[[Path, Any], None]


@dataclass(frozen=True)
class Outcome:
    """Of one case.

    Attributes:
        seconds: of the processor, which a busy machine does not change.
        detail: the sentence of a refusal; what is wrong with a failure, the same text for the same place in the code.
        trace: of a failure.
    """

    kind: str
    seconds: float
    detail: str = ""
    trace: str = ""


def fresh(folder: Path) -> None:
    """Empty ``in`` and ``out``."""
    for name in ("in", "out"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)


def judge(target: Target, seeds: Any, folder: Path) -> Outcome:
    """Read the case that lies in ``folder``."""
    before = _listing(folder / "in")
    peak = _peak_bytes()
    begun = time.process_time()
    kind, detail, trace = ACCEPTED, "", ""
    try:
        target.read(folder, seeds)
    except OURS as error:
        kind, detail = REFUSED, str(error)
        if problem := sentence_problem(detail):
            kind, detail, trace = FAILED, f"{problem}: {_place(error)}", f"{detail[:2000]!r}\n{traceback.format_exc()}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        kind, detail, trace = FAILED, f"{type(error).__name__}: {_place(error)}", traceback.format_exc()
    seconds = time.process_time() - begun
    if kind != FAILED:
        if _listing(folder / "in") != before:
            kind, detail = FAILED, "the folder of its input was changed"
        elif kind == REFUSED and _listing(folder / "out"):
            kind, detail = FAILED, f"refused, but left {_listing(folder / 'out')[0]}"
        elif _peak_bytes() - peak > MOST_MEMORY:
            kind, detail = FAILED, f"took {(_peak_bytes() - peak) / 2**20:.0f} MiB more than any case before it"
        elif seconds > HANG_SECONDS:
            kind, detail = FAILED, "took more than 10 s"
    return Outcome(kind, seconds, detail, trace)


def sentence_problem(text: str) -> str | None:
    """Why a message is not one sentence that a terminal can show; None if it is."""
    if not text.strip():
        return "an empty message"
    if "\n" in text or "\r" in text:
        return "a message of several lines"
    if not text.isprintable():
        return "a message that cannot be printed"
    if len(text) > LONGEST_SENTENCE:
        return "a message of more than 1000 characters"
    return None


def _place(error: BaseException) -> str:
    """Where in our code an error came from: the innermost line of the pipeline."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pipeline/" in frame.filename]
    if not frames:
        return "outside of the pipeline"
    return f"pipeline/{frames[-1].filename.rpartition('/pipeline/')[2]}:{frames[-1].lineno}"


def _listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
