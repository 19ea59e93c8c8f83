"""Compare a student file with the teacher in size, speed and accuracy, with confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from pipeline.device.benchmark import statistics
from pipeline.portable.accuracy import Difference
from pipeline.portable.documents import MeasuredRow
from pipeline.report.cascades import CascadeRow
from pipeline.report.formatting import interval, percent, points, ratio, runtime, verdict
from pipeline.report.rows import Row

# Latencies with these verdicts have an unknown error, so no speed-up is claimed from them.
_UNUSABLE = frozenset({"throttled", "too_few_samples"})


@dataclass(frozen=True)
class Comparison:
    """Comparison of a student file with the teacher.

    Attributes:
        teacher: row of the teacher; None if no teacher file was exported.
        size_ratio: size of the teacher's file / size of the student's file.
        speed_ratio: median latency of the teacher / median latency of the student; None if no difference is shown.
        speed_reason: reason if ``speed_ratio`` is None; else empty.
        difference: top-1 of the student minus top-1 of the teacher; None if not measured.
    """

    teacher: Row | None
    size_ratio: float | None
    speed_ratio: float | None
    speed_reason: str
    difference: Difference | None


def compare(row: Row, rows: Sequence[Row], measured: Sequence[MeasuredRow]) -> Comparison:
    """Compare ``row`` with the teacher in the same runtime if timed there, else in its fastest runtime.

    Args:
        rows: all rows of the same device.
        measured: rows of the benchmark of this device.
    """
    teacher = min(
        (other for other in rows if other.role == "teacher"),
        key=lambda other: (other.latency_p50_ms is None, other.runtime != row.runtime, other.latency_p50_ms or 0.0),
        default=None,
    )
    if teacher is None:
        return Comparison(None, None, None, "no file of the teacher was exported", None)
    speed, reason = _speed(row, teacher, {(each.name, each.runtime): each for each in measured})
    return Comparison(teacher, teacher.size_bytes / row.size_bytes, speed, reason, row.difference_to(teacher))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); ``count`` >= 1."""
    z = NormalDist().inv_cdf(0.975)
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    half = z * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def deploy_words(row: Row, *, several: bool) -> str:
    """The file or cascade and its runtime; of a file, with the name of the student if there are several."""
    if isinstance(row, CascadeRow):
        cascade, sent = row.cascade, percent(row.cascade.sent)
        return (
            f"Deploy the cascade of {cascade.small.name} and {cascade.large.name} with {runtime(row.runtime)}, in "
            f"which the latter answers the {sent} % of the images that the former is least certain of"
        )
    return f"Deploy {f'the student {row.student} as ' * several}{row.name} with {runtime(row.runtime)}"


def verdict_sentence(row: Row, comparison: Comparison, decimals: int, *, several: bool) -> str:
    """Recommend a file in one sentence, with its gain and loss against the teacher."""
    start = deploy_words(row, several=several)
    if comparison.teacher is None:
        return f"{start}; it was not compared with the teacher, because {comparison.speed_reason}."
    gains = [_times(comparison.size_ratio, "smaller", "larger", "as large")] if comparison.size_ratio else []
    if comparison.speed_ratio is not None:
        gains.append(_times(comparison.speed_ratio, "faster", "slower", "as fast"))
    other = comparison.teacher.runtime
    elsewhere = f" in {runtime(other)}" if comparison.speed_ratio is not None and other != row.runtime else ""
    words, links = zip(*gains, strict=True)
    if len(set(links)) == 1:
        sentence = f"{start}: {' and '.join(words)} {links[0]} the teacher{elsewhere}"
    else:
        sentence = f"{start}: {words[0]} {links[0]} the teacher and {words[1]} {links[1]} it{elsewhere}"
    if comparison.difference is None:
        sentence += "; the accuracy difference was not measured"
    else:
        change = points(comparison.difference.value, decimals)
        bounds = interval(comparison.difference.low, comparison.difference.high, decimals)
        accuracy = "the same top-1 accuracy" if change[0] == "0" else f"{change} points of top-1 accuracy"
        sentence += f", at {accuracy} (95 % interval {bounds})"
    if comparison.speed_ratio is None:
        sentence += f"; no speed-up is claimed, because {comparison.speed_reason}"
    return sentence + "."


def _times(value: float, more: str, less: str, equal: str) -> tuple[str, str]:
    """A ratio in words, and the word before what is compared with: ``("3.6× smaller", "than")``."""
    factor = ratio(max(value, 1 / value))
    return (equal, "as") if factor == ratio(1) else (f"{factor} {more if value > 1 else less}", "than")


def _round_medians(row: Row, measured: Mapping[tuple[str, str], MeasuredRow]) -> list[float]:
    """Median of each round, milliseconds; of a cascade the mean of an image, by the rounds of both files."""
    if isinstance(row, CascadeRow):
        small, large = (_round_medians(each, measured) for each in (row.cascade.small, row.cascade.large))
        return [first + row.cascade.sent * second for first, second in zip(small, large, strict=False)]
    return [timed.median_ms for timed in measured[row.key].rounds] if row.key in measured else []


def _speed(row: Row, teacher: Row, measured: dict[tuple[str, str], MeasuredRow]) -> tuple[float | None, str]:
    """Return the latency ratio teacher / file if the benchmark's rule shows a difference, else None and the reason."""
    medians, latencies = [], []
    for subject, candidate in (("the file", row), ("the teacher", teacher)):
        rounds = _round_medians(candidate, measured)
        if not candidate.latency_p50_ms or not rounds:
            return None, f"the latency of {subject} was not measured"
        if candidate.verdict in _UNUSABLE:
            return None, f"the latency of {subject} is {verdict(candidate.verdict)}"
        medians.append(rounds)
        latencies.append(candidate.latency_p50_ms)
    result = statistics.compare(medians[0], medians[1])
    if result.verdict == "no difference shown":
        reason = result.reason.rstrip(".")
        return None, f"a comparison {reason}" if "needs" in reason else reason
    return latencies[1] / latencies[0], ""
