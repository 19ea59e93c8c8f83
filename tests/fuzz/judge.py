"""Judge a case: it must work, or raise one of our own errors with one sentence, and leave nothing behind."""

from __future__ import annotations

import random
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.device.errors import DeviceError
from pipeline.errors import EnergyKDError
from pipeline.remote.errors import RemoteError
from pipeline.runtimes import RuntimesError
from tests.fuzz.cases import ACCEPTED, FAILED, HANG_SECONDS, REFUSED, Outcome

Files = Mapping[Path, bytes]  # by their paths in a folder

OURS = (EnergyKDError, DeviceError, RemoteError, RuntimesError)
LONGEST_SENTENCE = 1000  # characters, the folder's name among them
MOST_MEMORY = 1 << 30  # bytes that one case may add to the peak


@dataclass(frozen=True)
class Target:
    """A reader of ours.

    Attributes:
        make: puts valid cases into an empty folder, each into a folder of its own.
        read: reads a folder as the pipeline does; may write below a second, which must be empty if it refuses.
        damage: a case made of a valid one.
    """

    what: str
    make: Callable[[Path], object]
    read: Callable[[Path, Path], object]
    damage: Callable[[Files, random.Random], Files]

    def valid(self, folder: Path) -> list[Files]:
        """The valid cases, made in a new folder, which must stay."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.make(folder)
        return [
            {path.relative_to(case): path.read_bytes() for path in sorted(case.rglob("*")) if path.is_file()}
            for case in sorted(folder.iterdir())
        ]


def judge(target: Target, files: Files, folder: Path) -> Outcome:
    """Write files into a folder, which is emptied before, and read them."""
    shutil.rmtree(folder, ignore_errors=True)
    inside, out = folder / "in", folder / "out"
    for path in (inside, out):
        path.mkdir(parents=True)
    for path, content in files.items():
        (inside / path).parent.mkdir(parents=True, exist_ok=True)
        (inside / path).write_bytes(content)
    before, peak, begun = _listing(inside), _peak_bytes(), time.process_time()
    kind, detail, trace = ACCEPTED, "", ""
    try:
        target.read(inside, out)
    except OURS as error:
        kind, detail = REFUSED, str(error)
        if problem := sentence_problem(detail):
            kind, detail, trace = FAILED, f"{problem}: {_place(error)}", f"{detail[:2000]!r}\n{traceback.format_exc()}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        kind, detail, trace = FAILED, f"{type(error).__name__}: {_place(error)}", traceback.format_exc()
    seconds, grown, left = time.process_time() - begun, _peak_bytes() - peak, _listing(out)
    problems = {
        "the folder of its input was changed": _listing(inside) != before,
        f"refused, but left {left[:1]}": kind == REFUSED and left,
        f"took {grown / 2**20:.0f} MiB more than any case before it": grown > MOST_MEMORY,
        f"took more than {HANG_SECONDS:g} s": seconds > HANG_SECONDS,
    }
    if kind != FAILED and any(problems.values()):
        kind, detail = FAILED, next(problem for problem, found in problems.items() if found)
    return Outcome(kind, seconds, detail, trace)


def sentence_problem(text: str) -> str | None:
    """Why a message is not one sentence that a terminal can show; None if it is."""
    if not text.strip():
        return "an empty message"
    if "\n" in text or "\r" in text:
        return "a message of several lines"
    if not text.isprintable():
        return "a message that cannot be printed"
    return "a message of more than 1000 characters" if len(text) > LONGEST_SENTENCE else None


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
