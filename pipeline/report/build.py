"""Build the report: rows of all devices, the recommended file, and the content of reports/*.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.report.compare import Comparison, compare
from pipeline.report.devices import OnDevice, on_device
from pipeline.report.inputs import Inputs
from pipeline.report.recommend import Recommendation, recommend
from pipeline.report.rows import Row, row_class, rows_here
from pipeline.runtimes import NAMES
from pipeline.store.documents import NetworkCard

_CARD = ("network", "parameters", "macs", "num_classes", "source", "epochs", "seed", "val_top1")
_TOP1 = ("top1", "top1_low_energy", "top1_mid_energy", "top1_high_energy")


@dataclass(frozen=True)
class Report:
    """Results of a run; :func:`pipeline.report.page.render_page` renders them as a page.

    Attributes:
        rows: rows of this machine.
        teacher, student: card and test accuracy of each network, as in reports/summary.json.
        recommendation: for this machine; its row is None if no file is within the budget.
        comparison: recommended row against the teacher; None without a recommended row.
        devices: devices of targets/, each with its own recommendation.
    """

    inputs: Inputs
    rows: Sequence[Row]
    teacher: dict[str, Any]
    student: dict[str, Any]
    recommendation: Recommendation
    comparison: Comparison | None
    devices: Sequence[OnDevice]

    def summary(self) -> dict[str, Any]:
        """Content of reports/summary.json. A missing measurement is None, and the row's notes have the reason."""
        return {
            "schema": 2,
            "student": self.student,
            "teacher": self.teacher,
            "rows": [asdict(row) for row in [*self.rows, *(row for device in self.devices for row in device.rows)]],
            "recommended": self.recommendation.reference(),
            "devices": [device.entry() for device in self.devices],
        }

    def metrics(self) -> dict[str, float]:
        """Content of reports/metrics.json: flat numbers with stable names for `dvc metrics show`.

        Accuracies are shares in [0, 1], latencies are in ms, sizes in MB (10^6 bytes). A missing measurement has no
        entry, because DVC has no null.
        """
        values: dict[str, float | None] = {
            "teacher_top1": self.teacher["top1"],
            "teacher_val_top1": self.teacher["val_top1"],
            "teacher_parameters": self.teacher["parameters"],
            "student_top1": self.student["top1"],
            "student_top1_high_energy": self.student["top1_high_energy"],
            "student_val_top1": self.student["val_top1"],
            "student_parameters": self.student["parameters"],
        }
        if row := self.recommendation.row:
            values |= {
                "recommended_top1": row.top1,
                "recommended_top1_high_energy": row.top1_high_energy,
                "recommended_delta_top1": row.delta_top1,
                "recommended_latency_p50_ms": row.latency_p50_ms,
                "recommended_throughput_ips": row.throughput_ips,
                "recommended_size_mb": row.size_bytes / 1e6,
            }
        if self.comparison:
            values |= {"compression_ratio": self.comparison.size_ratio, "speedup": self.comparison.speed_ratio}
        return {name: value for name, value in values.items() if value is not None}


def build_report(inputs: Inputs) -> Report:
    """Combine the measurements of this machine and of the devices.

    Raises:
        DataError: an artifact of the run is missing or damaged.
        LineageError: two artifacts come from different runs, or a measured file is not the exported one.
    """
    run = inputs.run
    rows = rows_here(run, inputs.tensorrt_unavailable)
    recommendation = recommend(rows, inputs.budget)
    chosen = recommendation.row
    return Report(
        inputs=inputs,
        rows=rows,
        teacher=_network(run.teacher, rows),
        student=_network(run.student, rows),
        recommendation=recommendation,
        comparison=compare(chosen, rows, run.benchmark.rows) if chosen else None,
        devices=[on_device(device, run.exported.files, row_class(run)) for device in inputs.devices],
    )


def _network(card: NetworkCard, rows: Sequence[Row]) -> dict[str, Any]:
    """Card and test accuracy of a network; the accuracy is that of its fp32 file, in torch if evaluated there."""
    evaluated = [row for row in rows if row.role == card.role and row.precision == "fp32" and row.top1 is not None]
    row = min(evaluated, key=lambda row: NAMES.index(row.runtime), default=None)
    notes = ["test accuracy not measured: no file of this network was evaluated in fp32"]
    if row is not None:
        notes = [note for note in row.notes if note.startswith("accuracy on")]
    facts = {key: getattr(card, key) for key in (*_CARD, "weights_sha256")} | {"image": card.image.model_dump()}
    return facts | {key: getattr(row, key, None) for key in _TOP1} | {"notes": notes}
