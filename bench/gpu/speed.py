"""Images/s of a training step and of scoring, against the plain reference mode and the bare networks, by batch size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from bench import arms
from bench.bare import BareForward, BareStep
from bench.gpu.call import Call
from bench.images import make_stores
from bench.measure import Comparison, compare, interleaved, ratio_table
from bench.ours import Scoring
from bench.setting import Setting
from pipeline import inference, scoring

TEACHER, STUDENT, IMAGE_SIZE = "wrn_40_2", "wrn_16_2", 32
STEP_BATCHES = (64, 128, 512, 1024)
SCORING_BATCHES = (64, 256, 1024, 4096)
WANTED = 100_000  # images/s of training at the best batch size
ROUNDS = 5
_LEAST_IMAGES, _WARMUP_STEPS = 12_800, 5
# of a round: images of one step are images that must be packed first, which takes longer than to score them
_LEAST_STEPS, _LEAST_SCORED = 25, 6

_Arms = Mapping[str, Callable[[Setting], Callable[[], float]]]

STEPS: _Arms = {
    **{name: arms.ARMS[name] for name in ("reference", "ours", "ours, compiled", "bare step")},
    "bare step, compiled": partial(BareStep, compiled=True),
}
STEP_COMPARISONS = (
    Comparison("(b)/(a) ours / plain reference mode", "ours", "reference", at_least=20),
    Comparison("(b)/(a) ours, compiled / the same", "ours, compiled", "reference", at_least=20),
    Comparison("(b)/(c) ours / bare step", "ours", "bare step", at_least=0.9),
    Comparison("(b)/(c) both compiled", "ours, compiled", "bare step, compiled", at_least=0.9),
)
FORWARDS: _Arms = {"scoring": Scoring, "bare forward": BareForward}
FORWARD_COMPARISONS = (Comparison("scoring / bare teacher forward", "scoring", "bare forward", at_least=0.9),)


def steps(call: Call) -> str:
    """The table of a training step; each batch size is a part."""
    measured, chosen = STEPS, STEP_BATCHES
    if call.quick:
        measured = {name: arm for name, arm in STEPS.items() if not name.endswith("compiled")}
        chosen = (8, 16)
    parts = [call.part(f"batch {batch}", partial(_measured, call, batch, measured, _LEAST_STEPS)) for batch in chosen]
    rows = _rows(parts, STEP_COMPARISONS)
    best, batch = max((row["numerator_median"], row["batch"]) for row in rows)
    outcome = f"The most is {best:,.0f} images/s at batch {batch}; wanted on a data centre's GPU: {WANTED:,}."
    return _report(call, "Speed of a training step by batch size", parts, rows, outcome)


def forwards(call: Call) -> str:
    """The table of scoring; each batch size is a part."""
    chosen = (8, 16) if call.quick else SCORING_BATCHES

    def measured(batch: int) -> dict[str, Any]:
        with _scored_in(batch):
            return _measured(call, batch, FORWARDS, _LEAST_SCORED)

    parts = [call.part(f"batch {batch}", partial(measured, batch)) for batch in chosen]
    outcome = "The pipeline scores small images 256 at once; the other sizes show what that costs."
    return _report(call, "Speed of scoring by batch size", parts, _rows(parts, FORWARD_COMPARISONS), outcome)


def _measured(call: Call, batch: int, measured: _Arms, least_steps: int) -> dict[str, Any]:
    steps = 2 if call.quick else max(least_steps, _LEAST_IMAGES // batch)
    networks = ("resnet8", "resnet8") if call.quick else (TEACHER, STUDENT)
    with tempfile.TemporaryDirectory(prefix="bench-") as stores:
        size = 16 if call.quick else IMAGE_SIZE
        setting = Setting(*networks, batch, size, steps, min(steps, _WARMUP_STEPS), call.device.type, stores)
        images = make_stores(call.data, setting, ["packed"])
        rates = interleaved({name: arm(setting) for name, arm in measured.items()}, 2 if call.quick else ROUNDS)
    return {"batch": batch, "steps": steps, "images": images, "images_per_second": rates}


@contextmanager
def _scored_in(batch: int) -> Iterator[None]:
    """The pipeline has one batch size for scoring, by the size of the images; here another takes its place."""
    with (
        patch.object(inference, "inference_batch", lambda images: batch),
        patch.object(scoring, "inference_batch", lambda images: batch),
    ):
        yield


def _rows(parts: Sequence[Mapping[str, Any]], comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        compare(each, rates) | {"name": f"batch {part['batch']}: {each.name}", "batch": part["batch"]}
        for part in parts
        for rates in [part["images_per_second"]]
        for each in comparisons
        if each.numerator in rates
    ]


def _report(
    call: Call, title: str, parts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], outcome: str
) -> str:
    networks = "resnet8" if call.quick else f"{TEACHER} to {STUDENT}"
    timed = ", ".join(f"{part['steps']} at batch {part['batch']}" for part in parts)
    rounds = len(next(iter(parts[0]["images_per_second"].values())))
    images = parts[0]["images"].partition(";")[0]
    body = f"""{networks} on {call.device.type}. Images: {images}. Medians of {rounds} interleaved rounds; steps in a \
round: {timed}. A value is the ratio of the medians, and min to max are the ratios within a round.

{ratio_table(rows)}

{outcome}"""
    return call.report(title, body, {"parts": parts, "ratios": rows})
