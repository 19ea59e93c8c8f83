"""Progress: a bar on a terminal, else a line now and then; lines in the log of the stage either way."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from stages.output import keep

_LINE_SECONDS = 30.0


class Bar(tqdm):
    """Done work of a total, with what matters most first: a bar is cut off at the right edge of the terminal.

    Args:
        total: None while it is unknown.
        shown: whether anything is shown; of several processes, the first alone shows its progress.
    """

    def __init__(self, label: str, unit: str, total: int | None = None, *, shown: bool = True) -> None:
        self._terminal = _draws_bars()
        self._next_line = time.monotonic() + _LINE_SECONDS
        self._facts = self._details = ""
        super().__init__(
            desc=label,
            total=total,
            unit=unit,
            file=sys.stderr if self._terminal else io.StringIO(),
            leave=False,  # the last line takes its place
            mininterval=0.5,
            miniters=1,
            smoothing=0,  # the mean over the run includes its validations, a moving average jumps with each
            dynamic_ncols=self._terminal,
            disable=not shown,
        )

    def tell(self, facts: str, details: str = "") -> None:
        """Show facts beside the progress, and details where there is room for them."""
        self._facts, self._details = facts, details
        self.refresh()

    def restart(self) -> None:
        """Take what is done for work of an earlier run, which says nothing about the time that is left."""
        if not self.disable:
            self.initial, self.start_t = self.n, self._time()

    @property
    def format_dict(self) -> Mapping[str, Any]:
        known = super().format_dict
        total, seconds, done = known["total"], known["elapsed"], known["n"] - known["initial"]
        rate = done / seconds if seconds else 0.0
        speed = f"{rate:,.{0 if rate >= 10 else 2}f} {self.unit}s/s" if done else ""
        when = "{elapsed}" if not total else "in {elapsed}" if known["n"] >= total else "{remaining} left"
        percentage = "{percentage:3.0f}% " if total else ""
        facts = ", ".join(filter(None, (self._facts, speed, self._details)))
        return known | {
            "bar_format": f"{{desc}} {percentage}{when}{{facts}} |{{bar}}|",
            "facts": facts and f", {facts}",
        }

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        # the last line is close's, which clears the bar with an empty text
        if msg is None and time.monotonic() >= self._next_line and self.n != self.total:
            self._next_line = time.monotonic() + _LINE_SECONDS
            if self._terminal:
                keep(self._as_line())
            else:
                print(self._as_line(), file=sys.stderr, flush=True)
        return bool(super().display(msg, pos)) if self._terminal else False

    def close(self) -> None:
        if not self.disable:
            line = self._as_line()
            super().close()
            print(line, file=sys.stderr, flush=True)

    def _as_line(self) -> str:
        known = self.format_dict
        line = known["bar_format"].removesuffix(" |{bar}|")
        return self.format_meter(**(known | {"bar_format": line, "ncols": None}))


def _draws_bars() -> bool:
    """Whether stderr is a terminal that returns to the start of a line and knows its width."""
    known = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return known and os.get_terminal_size(sys.stderr.fileno()).columns > 0


@contextmanager
def progress(label: str, total: int, unit: str, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Progress on stderr; yields the function that advances it."""
    with Bar(label, unit, total, shown=shown) as bar:
        yield lambda count: bar.update(count) and None


@contextmanager
def counted(label: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Progress on stderr; yields the function that sets it: done, total (0: unknown), label of the next step."""
    with Bar(label, unit) as bar:

        def on_progress(done: int, total: int, what: str) -> None:
            if total:
                first, bar.total, bar.n = bar.total is None, total, done
                if first:  # what was before, as the wait for a device, says nothing about the time left
                    bar.restart()
            bar.tell(what)

        yield on_progress
