"""Cascades of two measured files of a device, each at the operating point that the validation split chooses."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.cascade import SCORES, CascadePoint, Score, cascade_correct, cascade_curves, choose_point
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
            name=f"{small.name} + {large.name}",
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


def find_cascades(rows: Sequence[Row], answers: Mapping[Key, FileAnswers]) -> list[Cascade]:
    """The cascades of each device that no file and no other cascade of the device beats, fastest first.

    Paired are measured ONNX or OpenVINO files in one runtime, the small one faster and the larger one, which may be the
    teacher's, more accurate on the validation split. Of the two scores, that one is taken which reaches the validation
    top-1 of the larger file with fewer images sent on. A cascade is left out if something else is at least as fast, on
    average, and at least as accurate on the validation split.

    Args:
        answers: to the validation and test images, by file and runtime; a row without them takes part in none.
    """
    devices = defaultdict(list)
    for row in rows:
        found = answers.get(row.key) if row.format != "torch" else None
        if found is not None and row.top1 is not None and row.latency_p50_ms is not None:
            file = _File(row, row.latency_p50_ms, found, float(found.val.correct.mean()))
            devices[row.target, row.device].append(file)
    return [cascade for files in devices.values() for cascade in _undominated(files)]


def _undominated(files: Sequence[_File]) -> list[Cascade]:
    programs = defaultdict(list)
    for file in files:
        if file.row.runtime in _RUNTIMES:
            programs[file.row.runtime, file.row.format, file.row.batch].append(file)
    cascades = [cascade for group in programs.values() for small in group for cascade in _cascades(small, group)]
    # of equal latency and accuracy, a single file is the simplest, and then the smallest cascade
    candidates: list[tuple[tuple[float, float, int], Cascade | None]] = [
        *(((file.latency, -file.val_top1, 0), None) for file in files),
        *(((each.latency_ms, -each.val_top1, each.size_bytes), each) for each in cascades),
    ]
    kept: list[Cascade] = []
    lowest = 0.0
    for (_, minus_top1, _), cascade in sorted(candidates, key=lambda candidate: candidate[0]):
        if minus_top1 < lowest:
            lowest = minus_top1
            kept += [] if cascade is None else [cascade]
    return kept


def _cascades(small: _File, files: Sequence[_File]) -> list[Cascade]:
    """Those of a file with each slower and more accurate one; none with one that would have to see all images."""
    larges = [file for file in files if file.latency > small.latency and file.val_top1 > small.val_top1]
    if not larges:
        return []
    latencies, of_larges = [large.latency for large in larges], [large.answers for large in larges]
    curves_of_scores = [cascade_curves(small.answers, of_larges, small.latency, latencies, score) for score in SCORES]
    cascades = []
    for large, *curves in zip(larges, *curves_of_scores, strict=True):
        point = choose_point([point for curve in curves for point in curve], large.val_top1)
        if point.threshold is not None:
            correct = cascade_correct(small.answers.test, large.answers.test, point)
            delta, curve = paired_difference(correct, large.answers.test.correct), curves[SCORES.index(point.score)]
            cascades.append(Cascade(small.row, large.row, **vars(point), delta=delta, correct=correct, curve=curve))
    return cascades
