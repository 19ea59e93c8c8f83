"""Devices of targets/: their results for the current files, and the recommended file for each device."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline import targets
from pipeline.config import BudgetParams
from pipeline.errors import DataError
from pipeline.lineage import Run
from pipeline.portable.documents import MeasuredRow
from pipeline.portable.text import brief
from pipeline.report.cascades import CascadeRow, cascade_rows
from pipeline.report.recommend import Recommendation, recommend
from pipeline.report.rows import Reference, Row, row_class
from pipeline.store.documents import ExportedFile, Measurement
from pipeline.store.json_files import parse_json
from pipeline.store.paths import TARGET_INDEX

# machine properties on the page and in the summary; none of them contains a host or user name
_MACHINE_FACTS = (
    *("board", "cpu", "machine", "logical_cores", "memory_total_kb", "kernel", "libc", "python", "numpy"),
    *("governors", "nvpmodel", "power_profile", "virtual_machine", "container", "emulated"),
)
_MEASUREMENTS = (
    *("name", "runtime", "sha256", "accuracy", "cold", "memory", "sustained", "throughput"),
    *("joules_per_inference", "power"),
)
_EMULATED = "it is emulated, and emulated latency does not predict the latency of a real processor"
_EMULATED_ROW = "latency emulated: it does not predict the latency of a real processor"
_NO_ROUTING = "energy threshold not measured on the device: the stage evaluate sets it, on this machine"


@dataclass(frozen=True)
class Device:
    """A device of the index with its measurement.

    Attributes:
        measured: content of its result.json; None if the hash of this file differs from the index.
        hashes: SHA-256 of its result.json, and the SHA-256 in the index.
    """

    name: str
    measured: Measurement | None
    budget: BudgetParams
    hashes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class OnDevice:
    """A device in the report.

    Attributes:
        hardware: hardware name from the device itself.
        machine: properties of the machine.
        changed: system settings changed for the measurement, path -> [value before, value].
        rows: rows of the table, for the current files only.
        cascades: as for this machine, by the latencies of the device.
        measured: the same rows as measured, in the same order.
        recommendation: for the budget of the device.
        notes: remarks on the whole result.
    """

    name: str
    hardware: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    changed: Any
    budget: BudgetParams
    rows: list[Row]
    cascades: list[CascadeRow]
    measured: list[MeasuredRow]
    recommendation: Recommendation
    notes: list[str]

    @property
    def emulated(self) -> bool:
        """True if a program emulates the processor."""
        return bool(self.machine["emulated"])

    @property
    def not_recommended(self) -> str | None:
        """Reason why no file is recommended; None if one is."""
        if self.recommendation.row is not None:
            return None
        if self.emulated:
            return _EMULATED
        if not self.rows:
            return "no current file was measured on it"
        if not self.recommendation.broken:
            return "no ONNX or OpenVINO file of a student was measured on it"
        return "each file breaks a limit of its budget"

    def in_short(self) -> str:
        """Summary in one line for the terminal."""
        row = self.recommendation.row
        start = f"deploy {row.name} with {row.runtime}" if row else f"no file is recommended: {self.not_recommended}"
        return "; ".join([start, *self.notes])

    def entry(self) -> dict[str, Any]:
        """Entry of ``devices`` in reports/summary.json."""
        return {
            "name": self.name,
            "device": self.hardware,
            "emulated": self.emulated,
            "recommended": self.recommendation.entry(),
            "not_recommended": self.not_recommended,
            "broken": self.recommendation.broken,
            "slower_than_fp32": self.recommendation.slower_than_fp32,
            "verdicts": dict(Counter(row.verdict for row in self.rows if row.verdict is not None)),
            "machine": self.machine,
            "settings": self.settings,
            "tuning": self.changed,
            "budget": self.budget.model_dump(),
            "measurements": [_measurement(row) for row in self.measured],
            "notes": self.notes,
        }


def _measurement(row: MeasuredRow) -> dict[str, Any]:
    values = {key: value for key, value in asdict(row).items() if key in _MEASUREMENTS}
    if values["accuracy"] is not None:
        del values["accuracy"]["correct"]  # as long as the test split
    return values


def read_devices() -> list[Device]:
    """Read the devices of the index. Raises DataError: the index or a result is missing or damaged."""
    devices = []
    for name, entry in targets.read_index().items():
        path = targets.device_files(name)[1]
        remedy = f"run `{targets.remeasure(name)}`, or remove {name} from {TARGET_INDEX}"
        try:
            content = path.read_bytes()
            measured = parse_json(content)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist, but {TARGET_INDEX} lists {name}; {remedy}") from None
        except ValueError as error:
            raise DataError(f"{path} is not readable as JSON ({brief(error)}); {remedy}") from None
        hashes = hashlib.sha256(content).hexdigest(), entry.result_sha256
        result = Measurement.parsed(measured, path, remedy) if hashes[0] == hashes[1] else None
        devices.append(Device(name, result, entry.budget, hashes))
    return devices


def on_device(device: Device, run: Run, here: Sequence[Row]) -> OnDevice:
    """Select the rows of a device for the current files, and recommend one.

    Args:
        here: the rows of this machine, for the accuracy on the validation split.
    """
    result, exported, kind = device.measured, {file.name: file for file in run.files}, row_class(run)
    reference, validation = Reference.of(run, device.budget), {row.name: row.val_top1 for row in here}
    machine = result.machine if result else {}
    current, older = [], []
    for row in result.rows if result else []:
        file = exported.get(row.name)
        if file is not None and file.sha256 == row.sha256:
            current.append(row)
        else:
            now = "missing" if file is None else file.sha256[:12]
            older.append(f"{row.name} {str(row.sha256)[:12]}, now {now}")
    emulated = bool(machine.get("emulated"))
    rows = [_row(device.name, row, exported[row.name], kind, emulated=emulated) for row in current]
    for each in rows:
        each.val_top1 = validation.get(each.name)
        each.set_reference(reference)
    cascades = [] if emulated else cascade_rows(rows, run.answers, reference)
    recommendation = recommend([*rows, *(cascades if device.budget.cascades else ())], device.budget)
    return OnDevice(
        name=device.name,
        hardware=result.device if result else device.name,
        machine={key: machine.get(key) for key in _MACHINE_FACTS},
        settings=result.settings if result else {},
        changed=result.tuning.get("changed", {}) if result else {},
        budget=device.budget,
        rows=rows,
        cascades=cascades,
        measured=current,
        recommendation=replace(recommendation, row=None) if emulated else recommendation,
        notes=[*_left_out(device, older), *(note.rstrip(".") for note in (result.notes if result else []))],
    )


def _left_out(device: Device, older: Sequence[str]) -> list[str]:
    command = f"run `{targets.remeasure(device.name)}`"
    if device.measured is None:
        result_hash, index_hash = (digest[:12] for digest in device.hashes)
        return [
            f"the result of {device.name} has hash {result_hash}, but the index has {index_hash}, so it is left out; "
            f"{command}"
        ]
    if not older:
        return []
    files = "; ".join(dict.fromkeys(older))
    return [f"results of {device.name} belong to older files and are left out ({files}); {command}"]


def _row(target: str, measured: MeasuredRow, file: ExportedFile, row_class: type[Row], *, emulated: bool) -> Row:
    row = row_class.of(file, measured.runtime, measured.device_name, target)
    if measured.accuracy is not None:
        row.set_accuracy(measured.accuracy, "image that was sent")
        row.set_parity(measured.accuracy)
        row.notes.append(_NO_ROUTING)
    elif not any("accuracy" in note for note in measured.notes):
        row.notes.append(f"accuracy not measured: {measured.error or 'the device returned none'}")
    row.set_latency(measured)
    row.set_executed(None, measured.precision_executed)
    if emulated:
        row.notes.append(_EMULATED_ROW)
    return row
