"""Devices of targets/: their results, as far as they are of the files at hand, and what to deploy on each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import BudgetParams, checked
from pipeline.errors import DataError, brief
from pipeline.report.device_result import Result
from pipeline.report.recommend import Recommendation, recommend
from pipeline.report.rows import GROUPS, blank, note_empty_groups, reference, set_executed, set_latency
from pipeline.store.paths import TARGET_INDEX
from pipeline.store.tables import parse_json
from pipeline.targets import read_index, remeasure, result_file

Json = Mapping[str, Any]

SCHEMA = 1
# what the page and the summary tell of a device; names of hosts and users are in none of these
PROVENANCE = (
    *("board", "cpu", "machine", "logical_cores", "memory_total_kb", "kernel", "libc", "python", "numpy"),
    *("governors", "nvpmodel", "power_profile", "virtual_machine", "container", "emulated"),
)
PASSES = ("accuracy", "cold", "memory", "sustained", "throughput", "joules_per_inference", "meter", "power")
_ACCURACY = ("images", "top1", *GROUPS, "delta_top1", "delta_top1_high_energy")
_INTERVAL = ("delta_ci_low", "delta_ci_high")
_HIGH_INTERVAL = ("delta_high_energy_ci_low", "delta_high_energy_ci_high")
_NOTHING = {"machine": {}, "settings": {}, "rows": [], "notes": [], "tuning": {"changed": {}}}
_EMULATED = "it is emulated, and the latency of an emulated processor says nothing about a real one"
_NO_ROUTING = "energy threshold not measured on the device: the stage evaluate sets it, on this machine"
_EMULATED_ROW = "latency emulated: it says nothing about a real processor"


@dataclass(frozen=True)
class Device:
    """A device as it was measured.

    Attributes:
        measured: content of its result.json; None if that is not the one that was shown last.
        hashes: of its result.json, and of the one that was shown last.
    """

    name: str
    measured: Json | None
    budget: BudgetParams
    hashes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class OnDevice:
    """A device in the report.

    Attributes:
        entry: of ``devices`` in the summary.
        rows: of the table, of the files at hand only.
        measured: rows of result.json, in the same order.
        recommendation: by the device's own budget.
    """

    entry: dict[str, Any]
    rows: list[dict[str, Any]]
    measured: list[Json]
    recommendation: Recommendation


def read_devices(root: Path) -> list[Device]:
    """The devices in the index, by name.

    Raises:
        DataError: the index or a result is missing or damaged.
    """
    devices = []
    for name, entry in read_index(root / TARGET_INDEX).items():
        path = root / result_file(name)
        remedy = f"run `{remeasure(name)}`, or remove {name} from {TARGET_INDEX}"
        try:
            content = path.read_bytes()
            measured = parse_json(content)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist, but {TARGET_INDEX} lists {name}; {remedy}") from None
        except ValueError as error:
            raise DataError(f"{path} is not readable as JSON ({brief(error)}); {remedy}") from None
        hashes = hashlib.sha256(content).hexdigest(), entry["result_sha256"]
        shown = hashes[0] == hashes[1]
        if shown and (not isinstance(measured, dict) or measured.get("schema") != SCHEMA):
            raise DataError(f"{path} is not a result that this version reads; {remedy}")
        if shown:
            checked(Result, measured, path, remedy)
        devices.append(Device(name, measured if shown else None, BudgetParams(**entry["budget"]), hashes))
    return devices


def on_device(device: Device, files: Sequence[Json]) -> OnDevice:
    """Rows, recommendation and summary of a device.

    Args:
        files: of the export manifest.
    """
    document: Json = device.measured or _NOTHING | {"device": device.name}
    exported = {file["name"]: file for file in files}
    current = [row for row in document["rows"] if exported.get(row["name"], {}).get("sha256") == row["sha256"]]
    older = [_older(row, exported.get(row["name"])) for row in document["rows"] if row not in current]
    notes = [*_left_out(device, list(dict.fromkeys(older))), *(note.rstrip(".") for note in document["notes"])]
    rows = [_row(device, document, row, exported[row["name"]]) for row in current]
    recommendation = recommend(rows, device.budget)
    emulated = document["machine"].get("emulated")
    if emulated:
        recommendation = Recommendation(None, recommendation.broken, recommendation.unprofitable)
    entry = {
        "name": device.name,
        "device": document["device"],
        "emulated": emulated,
        "recommended": reference(recommendation.row),
        "not_recommended": _why_none(recommendation, rows, emulated=bool(emulated)),
        "broken": {name: list(limits) for name, limits in recommendation.broken.items()},
        "unprofitable": {name: list(clauses) for name, clauses in recommendation.unprofitable.items()},
        "verdicts": dict(Counter(row["verdict"] for row in rows if row["verdict"] is not None)),
        "provenance": {key: document["machine"].get(key) for key in PROVENANCE},
        "settings": dict(document["settings"]),
        "tuning": document["tuning"]["changed"],
        "budget": device.budget.model_dump(),
        "measurements": [
            {key: row[key] for key in ("name", "runtime", "sha256")} | {key: row.get(key) for key in PASSES}
            for row in current
        ],
        "notes": notes,
    }
    return OnDevice(entry, rows, current, recommendation)


def _older(row: Json, file: Json | None) -> str:
    now = "is not there" if file is None else f"is {file['sha256'][:12]}"
    return f"{row['name']} {row['sha256'][:12]}, which now {now}"


def _left_out(device: Device, older: Sequence[str]) -> list[str]:
    command = f"run `{remeasure(device.name)}`"
    if device.measured is None:
        found, shown = (brief(each[:12]) for each in device.hashes)
        return [
            f"the result of {device.name} has hash {found}, but the one that was shown last has {shown}, so it is left "
            f"out; {command}"
        ]
    if not older:
        return []
    return [f"results of {device.name} that belong to older files are left out ({'; '.join(older)}); {command}"]


def _why_none(recommendation: Recommendation, rows: Sequence[Json], *, emulated: bool) -> str | None:
    if recommendation.row is not None:
        return None
    if emulated:
        return _EMULATED
    if not rows:
        return "none of the files at hand was measured on it"
    if not recommendation.broken:
        return "no ONNX or OpenVINO file of the student was measured on it"
    return "each file breaks a limit of its budget"


def _row(device: Device, document: Json, measured: Json, file: Json) -> dict[str, Any]:
    row = blank(file, measured["runtime"], measured.get("device_name") or document["device"], device.name)
    accuracy = measured.get("accuracy")
    if accuracy is None:
        if not any("accuracy" in note for note in measured["notes"]):
            row["notes"].append(f"accuracy not measured: {measured['error'] or 'the device gave none'}")
    else:
        row.update({key: accuracy.get(key) for key in (*_ACCURACY, *_INTERVAL, *_HIGH_INTERVAL)})
        row.update(parity_max_abs=accuracy["parity_max_abs"], parity_top1_agreement=accuracy["parity_top1_agreement"])
        note_empty_groups(row, "image that was sent")
        for key, what in (("delta_ci_low", "difference"), ("delta_high_energy_ci_low", "high-energy difference")):
            if row[key] is None:
                row["notes"].append(f"interval of the {what} to the torch student not measured: the device gives none")
        row["notes"].append(_NO_ROUTING)
    set_latency(row, measured)
    set_executed(row, None, measured)
    if document["machine"].get("emulated"):
        row["notes"].append(_EMULATED_ROW)
    return row
