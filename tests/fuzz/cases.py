"""How a case ended, and what a process tells of a run of cases."""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

ACCEPTED, REFUSED, FAILED = "accepted", "refused", "failed"
HANG_SECONDS = 10.0
_PATIENCE = 6  # a case that waits has several times as long by the clock as one that computes


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


def tell_cases(judged: Callable[[int], Outcome], first: int, count: int) -> None:
    """Judge a run of cases and print of each before and after, so that a crash is named; a hang ends the process.

    It is measured in the processor's time, so that a busy machine makes none, or in several times that by the clock.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    logging.disable()
    warnings.simplefilter("ignore")
    for seed in range(first, first + count):
        print(f"begin {seed}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)  # its signal ends the process
        faulthandler.dump_traceback_later(_PATIENCE * HANG_SECONDS, exit=True)
        outcome = judged(seed)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(asdict(outcome)), flush=True)
