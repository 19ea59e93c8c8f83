"""Rows of the table of all measurements: one row per file, runtime and device."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.config import TEACHER, BudgetParams
from pipeline.lineage import NetworkRun, Run
from pipeline.portable.accuracy import GROUPS, Accuracy, Difference, paired_difference, unpack_correct
from pipeline.portable.documents import MeasuredRow
from pipeline.report.formatting import runtime, verdict
from pipeline.store.answers import spread_over
from pipeline.store.documents import EvaluatedRow, ExportedFile, Routing, ShotAccuracy

_GROUPS = {"top1_low_energy": "low", "top1_mid_energy": "middle", "top1_high_energy": "high"}


@dataclass
class Row:
    """One file in one runtime on one device; the fields are the keys of a row in reports/summary.json.

    A missing measurement is None, and ``notes`` have the reason.

    Attributes:
        student: name of the student; None for the teacher.
        device: hardware name from the device itself.
        target: name of the device in targets/; None for this machine.
        batch: fixed batch size of the file; None if it is dynamic.
        precision_executed: None if accuracy and latency were measured in different precisions.
        images: number of images for ``top1``.
        delta_top1: difference to the file's own torch network on the same images, as a share, with its 95 % interval.
        delta_reference: difference to the reference of the budget on the same images, likewise.
        val_top1: on the validation split, from the stage evaluate on this machine.
        correct: bool [images], which answers are right, in the order of the test images; not in the summary.
        energy_threshold: the device keeps answers up to this energy; see :mod:`pipeline.evaluation.routing`.
        latency_ci_low_ms, latency_ci_high_ms: 95 % interval of the median latency over rounds.
    """

    name: str
    role: str
    student: str | None
    format: str
    precision: str
    runtime: str
    device: str
    target: str | None
    batch: int | None
    size_bytes: int
    sha256: str
    precision_executed: str | None = None
    images: int | None = None
    top1: float | None = None
    val_top1: float | None = None
    top1_low_energy: float | None = None
    top1_mid_energy: float | None = None
    top1_high_energy: float | None = None
    delta_top1: float | None = None
    delta_ci_low: float | None = None
    delta_ci_high: float | None = None
    delta_top1_high_energy: float | None = None
    delta_high_energy_ci_low: float | None = None
    delta_high_energy_ci_high: float | None = None
    delta_reference: float | None = None
    delta_reference_ci_low: float | None = None
    delta_reference_ci_high: float | None = None
    delta_reference_high_energy: float | None = None
    energy_threshold: float | None = None
    on_device_coverage: float | None = None
    on_device_top1: float | None = None
    parity_max_abs: float | None = None
    parity_top1_agreement: float | None = None
    latency_p50_ms: float | None = None
    latency_ci_low_ms: float | None = None
    latency_ci_high_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    throughput_ips: float | None = None
    verdict: str | None = None
    notes: list[str] = field(default_factory=list)
    correct: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, file: ExportedFile, runtime_name: str, device: str, target: str | None = None) -> Self:
        """Make a row without measurements."""
        keys = {"name", "role", "student", "format", "precision", "batch", "size_bytes", "sha256"}
        facts = file.model_dump(include=keys)
        return cls(**facts, runtime=runtime_name, device=device, target=target)

    @property
    def key(self) -> tuple[str, str]:
        """File and runtime; unique among the rows of a device."""
        return self.name, self.runtime

    @property
    def is_measured(self) -> bool:
        return self.top1 is not None or self.latency_p50_ms is not None

    def entry(self) -> dict[str, Any]:
        """The row in reports/summary.json."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "correct"}

    def set_reference(self, reference: "Reference") -> None:
        """Set the differences to the reference on the images of this row."""
        if self.correct is None:
            return
        index = spread_over(len(reference.correct), len(self.correct))
        other, high = reference.correct[index], reference.groups[index] == GROUPS["high"]
        difference = paired_difference(self.correct, other)
        self.delta_reference = difference.value
        self.delta_reference_ci_low, self.delta_reference_ci_high = difference.low, difference.high
        if high.any():
            self.delta_reference_high_energy = float(self.correct[high].mean() - other[high].mean())

    def difference_to(self, other: "Row") -> Difference | None:
        """Top-1 of this row minus that of another on the same images; None if they were not measured on the same."""
        if self.correct is None or other.correct is None or len(self.correct) != len(other.correct):
            return None
        return paired_difference(self.correct, other.correct)

    def set_accuracy(self, accuracy: Accuracy, image_kind: str) -> None:
        """Set accuracy and differences, with a note for each energy group without an ``image_kind`` ("test image")."""
        self._copy_fields(accuracy, "images", "top1", "delta")
        self.correct = unpack_correct(accuracy.correct, accuracy.images)
        self.notes += [
            f"accuracy on {group}-energy images not measured: no {image_kind} is in this group"
            for key, group in _GROUPS.items()
            if getattr(self, key) is None
        ]

    def set_parity(self, accuracy: Accuracy) -> None:
        """Set the parity measured on the device."""
        self._copy_fields(accuracy, "parity")

    def set_latency(self, measured: MeasuredRow) -> None:
        """Set the latencies, with a note for each missing value and for each reason behind the verdict."""
        self._copy_fields(measured, "latency", "throughput", "verdict")
        reasons = " ".join([*measured.notes, *measured.reasons])
        self.notes += [note.rstrip(".") for note in measured.notes]
        if "latency not measured" not in reasons:
            values = {
                "p50": self.latency_p50_ms,
                "p90": self.latency_p90_ms,
                "p99": self.latency_p99_ms,
                "interval of the latency": self.latency_ci_low_ms,
                "throughput": self.throughput_ips,
                "verdict": self.verdict,
            }
            self.notes += [
                f"{quantity} not measured: the benchmark returned none"
                for quantity, value in values.items()
                if value is None and quantity.split()[0] not in reasons
            ]
        self.notes += [f"latency {verdict(self.verdict)}: {reason.rstrip('.')}" for reason in measured.reasons]

    def set_executed(self, accuracy: str | None, latency: str | None) -> None:
        """Set the executed precision; None if accuracy and latency were measured in different precisions.

        If only the layer counts of a mixed precision differ, because of the batch size, the latency decides.
        """
        executed = latency or accuracy
        if executed is None:
            self.notes.append("executed precision not measured: the file did not run")
            return
        both = f"accuracy in {accuracy}, latency in {latency}"
        if accuracy and latency and _dominant(accuracy) != _dominant(latency):
            self.notes.append(f"executed precision not unique: {both}")
            return
        self.precision_executed = executed
        if accuracy and latency and accuracy != latency:
            self.notes.append(f"executed precision: {both}")
        if _dominant(executed) != self.precision:
            self.notes.append(f"{self.precision} not executed: {runtime(self.runtime)} ran {executed}")

    def _copy_fields(self, source: object, *prefixes: str) -> None:
        """Copy the fields of ``source`` with a name that starts with one of the ``prefixes``."""
        for each in fields(self):
            if each.name.startswith(prefixes) and hasattr(source, each.name):
                setattr(self, each.name, getattr(source, each.name))


@dataclass
class LongTailRow(Row):
    """A row for a long-tailed training split, with balanced accuracy of all classes and of the three shot groups."""

    balanced_accuracy: float | None = None
    top1_many_shot: float | None = None
    top1_medium_shot: float | None = None
    top1_few_shot: float | None = None

    def set_shots(self, balanced_accuracy: float, shots: ShotAccuracy) -> None:
        """Set the accuracies, with a note for each shot group without classes."""
        self.balanced_accuracy = balanced_accuracy
        self._copy_fields(shots, "top1")
        self.notes += [
            f"accuracy on {group}-shot classes not measured: there is none"
            for group in ("many", "medium", "few")
            if getattr(self, f"top1_{group}_shot") is None
        ]


def row_class(run: Run) -> type[Row]:
    """Class for the rows of a run: LongTailRow if the training split is long-tailed."""
    return Row if run.network(TEACHER).evaluation.shot_classes is None else LongTailRow


def rows_here(run: Run, tensorrt_unavailable: str | None) -> list[Row]:
    """Make the rows of this machine: the files of each student in the order of its manifest, then the teacher's.

    Args:
        tensorrt_unavailable: reason why TensorRT cannot run here, in one sentence; None if it can.
    """
    evaluated_rows = {(row.name, row.runtime): row for network in run.networks for row in network.evaluation.rows}
    timed_rows = {(row.name, row.runtime): row for row in run.benchmark.rows}
    kind, rows = row_class(run), []
    for file in run.files:
        for name in (name for name in runtimes.NAMES if runtimes.format_read_by(name, file.precision) == file.format):
            evaluated, timed = evaluated_rows.get((file.name, name)), timed_rows.get((file.name, name))
            # the device of a row may differ from the device of the benchmark: TensorRT runs on the GPU
            row = kind.of(file, name, timed.device_name if timed else run.benchmark.device)
            if evaluated or timed:
                _fill(row, file, evaluated, timed)
            elif name == "tensorrt_rtx" or (name == "tensorrt" and file.role == "teacher"):
                continue  # one row a file is enough to say that it was not measured on a GPU
            else:
                reason = tensorrt_unavailable if name == "tensorrt" else None
                reason = reason or f"{runtime(name)} is not among evaluate.runtimes and benchmark.runtimes"
                row.notes.append(f"not measured on this machine: {reason.rstrip('.')}")
                if file.parity.runtime == name:
                    _set_parity(row, file, None)
            if (answers := run.answers.get(row.key)) is not None:
                row.val_top1 = float(answers.val.correct.mean())
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Reference:
    """The network that the drops of a budget are against.

    Attributes:
        name: of the student, or "teacher".
        correct: bool [N], which test images the torch network answers right.
        groups: int8 [N], codes of the energy groups.
    """

    name: str
    correct: NDArray[np.bool_]
    groups: NDArray[np.int8]

    @classmethod
    def of(cls, run: Run, budget: BudgetParams) -> Self:
        network = run.network(TEACHER) if budget.reference == TEACHER else best_student(run)
        return cls(network.name, network.answers.network.test.correct, run.energy_test.columns["group"])


def best_student(run: Run) -> NetworkRun:
    """The student with the best validation top-1; of equals the one with fewer parameters, then by name."""
    return min(run.students, key=lambda each: (-each.card.val_top1, each.card.parameters, each.name))


def _fill(row: Row, file: ExportedFile, evaluated: EvaluatedRow | None, timed: MeasuredRow | None) -> None:
    if evaluated is None:
        row.notes.append(f"accuracy not measured: {runtime(row.runtime)} is not among evaluate.runtimes")
    else:
        row.set_accuracy(evaluated.accuracy, "test image")
        _set_routing(row, evaluated.routing)
    if timed is None:
        row.notes.append(f"latency not measured: {runtime(row.runtime)} is not among benchmark.runtimes")
    else:
        row.set_latency(timed)
    row.set_executed(evaluated.precision_executed if evaluated else None, timed.precision_executed if timed else None)
    _set_parity(row, file, timed.accuracy if timed else None)
    if isinstance(row, LongTailRow) and evaluated and evaluated.shots:
        row.set_shots(evaluated.balanced_accuracy, evaluated.shots)


def _set_routing(row: Row, routing: Routing) -> None:
    router = routing.energy
    row.energy_threshold, row.on_device_coverage, row.on_device_top1 = router.threshold, router.coverage, router.top1
    if router.threshold is None:
        kept = "all of its answers are" if router.coverage else "no share of its most certain answers is"
        wanted = f"{100 * routing.wanted_top1:g} %"
        row.notes.append(f"no energy threshold: {kept} {wanted} right on the validation split")
    if router.top1 is None:
        row.notes.append("accuracy on the device not measured: no test image is kept there")


def _set_parity(row: Row, file: ExportedFile, timed: Accuracy | None) -> None:
    """Set the parity from the export stage, else the parity that the benchmark measured."""
    if file.parity.runtime == row.runtime:
        row.parity_max_abs, row.parity_top1_agreement = file.parity.max_abs, file.parity.top1_agreement
    elif timed is not None and timed.parity_max_abs is not None:
        row.set_parity(timed)
    else:
        compared = runtime(file.parity.runtime)
        row.notes.append(f"parity not measured in {runtime(row.runtime)}: the export stage compared in {compared}")


def _dominant(precision: str) -> str:
    """Most frequent precision: ``int8`` for ``mixed:int8=20,fp32=1``; a single precision is returned unchanged."""
    return precision.removeprefix("mixed:").split("=")[0]
