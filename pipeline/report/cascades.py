"""Cascades of two measured files of a device, at the thresholds that the validation split chooses."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.cascade import SCORES, CascadePoint, Score, cascade_correct, cascade_curves
from pipeline.portable.accuracy import Difference, group_accuracy, paired_difference
from pipeline.report.rows import Reference, Row
from pipeline.store.answers import FileAnswers, Key

_RUNTIMES = ("onnxruntime", "openvino")  # those of predict.py


@dataclass(frozen=True, eq=False)
class Cascade:
    """A file that answers, and a larger one for the images that it is not certain of.

    Attributes:
        small, large: rows of one device in the same runtime.
        score, threshold: an image is sent on if the energy of the small file's answer is above the threshold, or its
            largest probability below.
        sent, top1: share of the test images that are sent on, and top-1 of the cascade on them all.
        val_sent, val_top1: the same on the validation split, which chose score and threshold.
        latency_ms: mean latency of a test image, by the median latencies of the files; a single image takes that of the
            small file, or that of both.
        delta: top-1 of the cascade minus top-1 of the larger file on the same test images.
        correct: whether each of the N test images is answered right, bool [N].
        curve: points of this score, from no image sent on to all of them.
    """

    small: Row
    large: Row
    score: Score
    threshold: float
    val_sent: float
    val_top1: float
    sent: float
    top1: float
    latency_ms: float
    delta: Difference
    correct: NDArray[np.bool_]
    curve: Sequence[CascadePoint]

    @property
    def size_bytes(self) -> int:
        """Of both files."""
        return self.small.size_bytes + self.large.size_bytes


_MEAN_LATENCY = (
    "latency of a cascade: the mean over the test images, of which one takes that of the first file, or that of both; "
    "p90 and p99 are the sums of both files"
)


@dataclass
class CascadeRow(Row):
    """A cascade as a row: it is a candidate beside the single files.

    Its name has the share of the validation images that are sent on, and the score: together they tell the cascades of
    a pair apart, because of two with the same images sent on by the same score one beats the other.

    ``size_bytes`` is of both files, ``latency_p50_ms`` the mean latency of an image, ``latency_p90_ms`` and
    ``latency_p99_ms`` the sums of both files. The accuracy is from the stage evaluate on this machine.
    """

    cascade: Cascade = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def made_of(cls, cascade: Cascade, reference: Reference) -> "CascadeRow":
        """The row of a cascade, compared with the reference of the budget."""
        small, large = cascade.small, cascade.large

        def both(name: str) -> float | None:
            values = getattr(small, name), getattr(large, name)
            return None if None in values else sum(values)

        def mean(name: str) -> float | None:
            values = getattr(small, name), getattr(large, name)
            return None if None in values else values[0] + cascade.sent * values[1]

        executed = [row.precision_executed for row in (small, large)]
        groups = group_accuracy(cascade.correct, reference.groups)
        row = cls(
            name=f"{small.name} + {large.name} ({100 * cascade.val_sent:.4g}% by {cascade.score})",
            role="student",
            student=small.student,
            format=small.format,
            precision="cascade",
            runtime=small.runtime,
            device=small.device,
            target=small.target,
            batch=small.batch,
            size_bytes=cascade.size_bytes,
            sha256=small.sha256,
            precision_executed=None if None in executed else " + ".join(map(str, executed)),
            images=len(cascade.correct),
            top1=cascade.top1,
            val_top1=cascade.val_top1,
            **{f"top1_{name}_energy": value for name, value in groups.items()},
            latency_p50_ms=cascade.latency_ms,
            latency_ci_low_ms=mean("latency_ci_low_ms"),
            latency_ci_high_ms=mean("latency_ci_high_ms"),
            latency_p90_ms=both("latency_p90_ms"),
            latency_p99_ms=both("latency_p99_ms"),
            throughput_ips=1e3 / cascade.latency_ms,
            verdict=next((row.verdict for row in (small, large) if row.verdict != "stable"), "stable"),
            notes=[_MEAN_LATENCY],
            correct=cascade.correct,
            cascade=cascade,
        )
        row.set_reference(reference)
        return row

    def entry(self) -> dict[str, Any]:
        """As for other rows, with the two files and the threshold."""
        found = self.cascade
        facts = {name: getattr(found, name) for name in ("score", "threshold", "sent", "val_sent", "val_top1")}
        files = {"small": found.small.name, "large": found.large.name, "large_sha256": found.large.sha256}
        values = super().entry()
        del values["cascade"]
        return values | {"cascade": files | facts}


def beaten_by(cascade: Row, rows: Sequence[Row]) -> Row | None:
    """A deployable file that is at least as fast, on average, and as accurate on the test images; None if none is."""
    return next(
        (
            row
            for row in rows
            if row.top1 is not None
            and row.latency_p50_ms is not None
            and row.format != "torch"
            and row.latency_p50_ms <= (cascade.latency_p50_ms or 0.0)
            and row.top1 >= (cascade.top1 or 0.0)
        ),
        None,
    )


def cascade_rows(rows: Sequence[Row], answers: Mapping[Key, FileAnswers], reference: Reference) -> list[CascadeRow]:
    """The cascades of :func:`find_cascades` as rows."""
    return [CascadeRow.made_of(cascade, reference) for cascade in find_cascades(rows, answers)]


@dataclass(frozen=True)
class _File:
    """A measured row with its answers."""

    row: Row
    latency: float
    answers: FileAnswers
    val_top1: float


@dataclass(frozen=True)
class _Candidate:
    """A pair of files with one of its thresholds."""

    small: _File
    large: _File
    point: CascadePoint
    curve: Sequence[CascadePoint]

    @property
    def order(self) -> tuple[float, float, int]:
        """Mean latency, accuracy and size: of equal ones the smallest comes first."""
        size = self.small.row.size_bytes + self.large.row.size_bytes
        return self.point.latency_ms, -self.point.val_top1, size

    def cascade(self) -> Cascade:
        small, large = self.small.answers.test, self.large.answers.test
        correct = cascade_correct(small, large, self.point)
        delta = paired_difference(correct, large.correct)
        files = self.small.row, self.large.row
        return Cascade(*files, **vars(self.point), delta=delta, correct=correct, curve=self.curve)


def find_cascades(rows: Sequence[Row], answers: Mapping[Key, FileAnswers]) -> list[Cascade]:
    """The cascades of each device that no file and no other cascade of the device beats, fastest first.

    Paired are measured ONNX or OpenVINO files in one runtime, the small one a student's and faster, the larger one,
    which may be the teacher's, more accurate on the validation split; candidates are all thresholds of both scores. One
    is left out if something else is at least as fast, on average, and at least as accurate on the validation split. Of
    a pair with more than three thresholds left, the fastest, the most accurate and one between are kept.

    Args:
        answers: to the validation and test images, by file and runtime; a row without them takes part in none.
    """
    devices = defaultdict(list)
    for row in rows:
        found = answers.get(row.key) if row.format != "torch" else None
        if found is not None and row.top1 is not None and row.latency_p50_ms is not None:
            file = _File(row, row.latency_p50_ms, found, float(found.val.correct.mean()))
            devices[row.target, row.device].append(file)
    return [candidate.cascade() for files in devices.values() for candidate in _thinned(_undominated(files))]


def _undominated(files: Sequence[_File]) -> list[_Candidate]:
    programs = defaultdict(list)
    for file in files:
        if file.row.runtime in _RUNTIMES:
            programs[file.row.runtime, file.row.format, file.row.batch].append(file)
    cascades = [
        candidate
        for group in programs.values()
        for small in group
        if small.row.role == "student"  # what answers first is what was made for the device
        for candidate in _candidates(small, group)
    ]
    # of equal latency and accuracy, a single file is the simplest
    candidates: list[tuple[tuple[float, float, int], _Candidate | None]] = [
        *(((file.latency, -file.val_top1, 0), None) for file in files),
        *((candidate.order, candidate) for candidate in cascades),
    ]
    kept: list[_Candidate] = []
    lowest = 0.0
    for (_, minus_top1, _), candidate in sorted(candidates, key=lambda each: each[0]):
        if minus_top1 < lowest:
            lowest = minus_top1
            kept += [] if candidate is None else [candidate]
    return kept


def _candidates(small: _File, files: Sequence[_File]) -> Iterator[_Candidate]:
    """Those of a file with each slower and more accurate one, without the ends, which are single files."""
    larges = [file for file in files if file.latency > small.latency and file.val_top1 > small.val_top1]
    latencies, of_larges = [large.latency for large in larges], [large.answers for large in larges]
    for score in SCORES if larges else ():
        curves = cascade_curves(small.answers, of_larges, small.latency, latencies, score)
        for large, curve in zip(larges, curves, strict=True):
            yield from (_Candidate(small, large, point, curve) for point in curve if point.threshold is not None)


def _thinned(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """At most three thresholds of each pair; the order stays."""
    pairs = defaultdict(list)
    for candidate in candidates:
        pairs[candidate.small.row.name, candidate.large.row.name].append(candidate)
    shown = {id(of_pair[place]) for of_pair in pairs.values() for place in (0, len(of_pair) // 2, -1)}
    return [candidate for candidate in candidates if id(candidate) in shown]
