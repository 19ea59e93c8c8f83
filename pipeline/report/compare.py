"""What the recommended file costs and gains against the teacher, claimed only as far as the measurements carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.device.benchmark import statistics
from pipeline.report.formatting import interval, points, ratio, runtime

Row = Mapping[str, Any]
RoundMedians = Mapping[tuple[str, str], Sequence[float]]

_NORMAL_975 = 1.959963984540054
# Verdicts whose latency may be measured off by an unknown factor: no speed is claimed from them.
_UNUSABLE = frozenset({"throttled", "too_few_samples"})


@dataclass(frozen=True)
class Comparison:
    """A student file against the teacher.

    Attributes:
        teacher: the teacher's row compared with; None if no teacher file was exported.
        size_ratio: bytes of the teacher's file over those of the file.
        speed_ratio: median latency of the teacher over that of the file; None if no difference may be claimed.
        speed_reason: why ``speed_ratio`` is None; empty otherwise.
        difference: top-1 of the file minus top-1 of the teacher, as shares, with a 95 % interval; None if not measured.
    """

    teacher: Row | None
    size_ratio: float | None
    speed_ratio: float | None
    speed_reason: str
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def compare(row: Row, rows: Sequence[Row], *, images: int, rounds: RoundMedians) -> Comparison:
    """Compare ``row`` with the teacher in the same runtime if it was measured there, else in its fastest.

    Args:
        images: number of test images behind every top-1.
        rounds: of :func:`round_medians`.
    """
    teacher = _teacher(row, rows)
    if teacher is None:
        return Comparison(None, None, None, "no file of the teacher was exported", None, None, None)
    speed, reason = _speed(row, teacher, rounds)
    difference = low = high = None
    if row["top1"] is not None and teacher["top1"] is not None:
        difference = row["top1"] - teacher["top1"]
        low, high = newcombe_interval(row["top1"], images, teacher["top1"], images)
    return Comparison(teacher, teacher["size_bytes"] / row["size_bytes"], speed, reason, difference, low, high)


def newcombe_interval(share: float, count: int, other: float, other_count: int) -> tuple[float, float]:
    """95 % interval of the difference ``share - other`` of two independent proportions.

    Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17, 1998,
    method 10. Two networks on the same images err on many of the same ones, so their difference varies less than that
    of independent samples and the interval is on the safe side.
    """
    low, high = wilson_interval(share, count)
    other_low, other_high = wilson_interval(other, other_count)
    difference = share - other
    return (
        difference - math.hypot(share - low, other_high - other),
        difference + math.hypot(high - share, other - other_low),
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); ``count`` >= 1."""
    z = _NORMAL_975
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale


def verdict_sentence(row: Row, comparison: Comparison, decimals: int) -> str:
    """One sentence: which file to deploy and what it costs against the teacher."""
    start = f"Deploy {row['name']} with {runtime(row['runtime'])}"
    if comparison.teacher is None:
        return f"{start}; what it costs against the teacher is not known, because {comparison.speed_reason}."
    gains = [_times(comparison.size_ratio, "smaller", "larger")] if comparison.size_ratio else []
    if comparison.speed_ratio is not None:
        gains.append(_times(comparison.speed_ratio, "faster", "slower"))
    other = comparison.teacher["runtime"]
    elsewhere = f" in {runtime(other)}" if comparison.speed_ratio is not None and other != row["runtime"] else ""
    sentence = f"{start}: {' and '.join(gains)} than the teacher{elsewhere}"
    if comparison.difference is None:
        sentence += ", at an accuracy difference that was not measured"
    else:
        change = points(comparison.difference, decimals)
        spread = interval(comparison.difference_low, comparison.difference_high, decimals)
        what = "the same top-1 accuracy" if change[0] == "0" else f"{change} points of top-1 accuracy"
        sentence += f", at {what} (95 % interval {spread})"
    if comparison.speed_ratio is None:
        sentence += f"; no speed-up is claimed, because {comparison.speed_reason}"
    return sentence + "."


def _times(value: float, more: str, less: str) -> str:
    return f"{ratio(value)} {more}" if value >= 1 else f"{ratio(1 / value)} {less}"


def _teacher(row: Row, rows: Sequence[Row]) -> Row | None:
    teachers = [other for other in rows if other["role"] == "teacher"]
    timed = [other for other in teachers if other["latency_p50_ms"] is not None]
    same = [other for other in timed if other["runtime"] == row["runtime"]]
    if same or timed:
        return min(same or timed, key=lambda other: float(other["latency_p50_ms"]))
    return teachers[0] if teachers else None


def round_medians(benchmark: Mapping[str, Any]) -> RoundMedians:
    """The median latency of each round in ms, by (file, runtime), of reports/benchmark.json."""
    return {
        (row["name"], row["runtime"]): [float(measured["median_ms"]) for measured in row["rounds"]]
        for row in benchmark["rows"]
    }


def _speed(row: Row, teacher: Row, rounds: RoundMedians) -> tuple[float | None, str]:
    """Latency of the teacher over that of the file if the benchmark's own rule shows a difference, or why not."""
    medians: list[Sequence[float]] = []
    for which, measured in (("the file", row), ("the teacher", teacher)):
        found = rounds.get((measured["name"], measured["runtime"]), ())
        if measured["latency_p50_ms"] is None or not found:
            return None, f"the latency of {which} was not measured"
        if measured["verdict"] in _UNUSABLE:
            return None, f"the latency of {which} is {measured['verdict'].replace('_', ' ')}"
        medians.append(found)
    shown = statistics.compare(medians[0], medians[1])
    if shown.verdict == "no difference shown":
        return None, f"a comparison {shown.reason.rstrip('.')}" if "needs" in shown.reason else shown.reason.rstrip(".")
    return float(teacher["latency_p50_ms"] / row["latency_p50_ms"]), ""
