"""Build the report: rows of all devices, the recommended file, and the content of reports/*.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import TEACHER
from pipeline.lineage import NetworkRun
from pipeline.portable.accuracy import group_accuracy, paired_difference
from pipeline.report.cascades import CascadeRow, cascade_rows
from pipeline.report.compare import Comparison, compare
from pipeline.report.devices import OnDevice, on_device
from pipeline.report.inputs import Curve, Inputs
from pipeline.report.recommend import Recommendation, recommend
from pipeline.report.rows import Reference, Row, best_student, rows_here

_CARD = ("network", "parameters", "macs", "num_classes", "source", "epochs", "seed", "val_top1")


@dataclass(frozen=True)
class Report:
    """Results of a run; :func:`pipeline.report.page.render_page` renders them as a page.

    Attributes:
        rows: rows of this machine.
        cascades: cascades of two of its files that no file and no other cascade beats.
        teacher, students: card and test accuracy of each torch network, as in reports/summary.json; students by name.
        recommendation: for this machine; its row is None if no file is within the budget.
        comparison: recommended row against the teacher; None without a recommended row.
        devices: devices of targets/, each with its own recommendation.
    """

    inputs: Inputs
    rows: Sequence[Row]
    cascades: Sequence[CascadeRow]
    teacher: dict[str, Any]
    students: Mapping[str, dict[str, Any]]
    recommendation: Recommendation
    comparison: Comparison | None
    devices: Sequence[OnDevice]

    @property
    def student(self) -> NetworkRun:
        """The student that the report tells of: the recommended one, else that of the best validation top-1."""
        row = self.recommendation.row
        if row is None or row.student is None:
            return best_student(self.inputs.run)
        return self.inputs.run.network(row.student)

    def summary(self) -> dict[str, Any]:
        """Content of reports/summary.json. A missing measurement is None, and the row's notes have the reason."""
        return {
            "schema": 3,
            "students": self.students,
            "teacher": self.teacher,
            "rows": [row.entry() for row in [*self.rows, *(row for device in self.devices for row in device.rows)]],
            "cascades": [
                row.entry() for row in [*self.cascades, *(row for device in self.devices for row in device.cascades)]
            ],
            "recommended": self.recommendation.entry(),
            "devices": [device.entry() for device in self.devices],
        }

    def metrics(self) -> dict[str, Any]:
        """Content of reports/metrics.json: numbers with stable names for `dvc metrics show` and `dvc exp show`.

        Accuracies are shares in [0, 1], latencies are in ms, sizes in MB (10^6 bytes). A missing measurement has no
        entry, because DVC has no null. ``student_*`` is of the student that the report tells of, ``students.NAME`` of
        each one, with its file that the budget would choose among its own.
        """
        student = self.students[self.student.name]
        values: dict[str, float | None] = {
            "teacher_top1": self.teacher["top1"],
            "teacher_val_top1": self.teacher["val_top1"],
            "teacher_parameters": self.teacher["parameters"],
            "student_top1": student["top1"],
            "student_top1_high_energy": student["top1_high_energy"],
            "student_val_top1": student["val_top1"],
            "student_parameters": student["parameters"],
        }
        if row := self.recommendation.row:
            values |= {f"recommended_{name}": value for name, value in _numbers(row).items()}
        if self.comparison:
            values |= {"compression_ratio": self.comparison.size_ratio, "speedup": self.comparison.speed_ratio}
        each = {name: self._metrics_of(name) for name in self.students}
        return {**_known(values), "students": {name: _known(numbers) for name, numbers in each.items()}}

    def _metrics_of(self, name: str) -> dict[str, float | None]:
        facts = self.students[name]
        values = {f"student_{key}": facts[key] for key in ("top1", "top1_high_energy", "val_top1", "parameters")}
        own = self.best_file_of(name)
        return values | (_numbers(own) if own else {})

    def best_file_of(self, name: str) -> Row | None:
        """The file that the budget would choose among those of one student; None if none is within it."""
        return recommend([row for row in self.rows if row.student == name], self.inputs.budget).row

    def curves(self) -> list[dict[str, Any]]:
        """Rows of reports/curves.csv: validation top-1 and training loss after each epoch, the teacher's first."""
        rows: dict[tuple[int, str], dict[str, Any]] = {}
        for name, curves in sorted(self.inputs.curves.items(), key=lambda item: item[0] != TEACHER):
            for metric in ("val_top1", "train_loss"):
                curve = curves.get(metric, Curve((), ()))
                for step, value in zip(curve.steps, curve.values, strict=True):
                    epoch = int(step) + 1  # DVCLive counts from 0
                    start = {"epoch": epoch, "student": name, "val_top1": None, "train_loss": None}
                    rows.setdefault((epoch, name), start)[metric] = value
        return list(rows.values())


def _numbers(row: Row) -> dict[str, float | None]:
    return {
        "top1": row.top1,
        "top1_high_energy": row.top1_high_energy,
        "delta_top1": row.delta_top1,
        "latency_p50_ms": row.latency_p50_ms,
        "throughput_ips": row.throughput_ips,
        "size_mb": row.size_bytes / 1e6,
    }


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def build_report(inputs: Inputs) -> Report:
    """Combine the measurements of this machine and of the devices.

    Raises:
        DataError: an artifact of the run is missing or damaged.
        LineageError: two artifacts come from different runs, or a measured file is not the exported one.
    """
    run = inputs.run
    rows, reference = rows_here(run, inputs.tensorrt_unavailable), Reference.of(run, inputs.budget)
    for row in rows:
        row.set_reference(reference)
    cascades = cascade_rows(rows, run.answers, reference)
    recommendation = recommend([*rows, *(cascades if inputs.budget.cascades else ())], inputs.budget)
    chosen = recommendation.row
    return Report(
        inputs=inputs,
        rows=rows,
        cascades=cascades,
        teacher=_network(run.network(TEACHER)),
        students={student.name: _network(student) for student in run.students},
        recommendation=recommendation,
        comparison=compare(chosen, rows, run.benchmark.rows) if chosen else None,
        devices=[on_device(device, run, rows) for device in inputs.devices],
    )


def _network(network: NetworkRun) -> dict[str, Any]:
    """Card and test accuracy of a torch network, and the difference of the latter to the best student's, if another."""
    card, run, correct = network.card, network.run, network.answers.network.test.correct
    best = best_student(run)
    difference = None if network is best else paired_difference(correct, best.answers.network.test.correct)
    groups = group_accuracy(correct, run.energy_test.columns["group"])
    return {
        **{key: getattr(card, key) for key in (*_CARD, "weights_sha256")},
        "image": card.image.model_dump(),
        "top1": float(correct.mean()),
        **{f"top1_{name}_energy": value for name, value in groups.items()},
        "difference_to_best_student": difference and asdict(difference),
    }
