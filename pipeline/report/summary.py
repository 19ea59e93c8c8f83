"""The table of all measurements: one row per exported file, runtime and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import BudgetParams
from pipeline.errors import LineageError
from pipeline.report.devices import OnDevice
from pipeline.report.formatting import runtime
from pipeline.report.inputs import Json
from pipeline.report.recommend import Recommendation, recommend
from pipeline.report.rows import (
    GROUPS,
    LONG_TAIL_KEYS,
    blank,
    note_empty_groups,
    reference,
    set_executed,
    set_latency,
)
from pipeline.runtimes import FORMAT_READ_BY, NAMES
from pipeline.store.paths import BENCHMARK, EVALUATION

_ACCURACY = ("top1", *GROUPS, "delta_top1", "delta_ci_low", "delta_ci_high", "delta_top1_high_energy")
_HIGH_INTERVAL = ("delta_high_energy_ci_low", "delta_high_energy_ci_high")


def build_summary(
    *,
    teacher: Json,
    student: Json,
    export: Json,
    evaluation: Json,
    benchmark: Json,
    budget: BudgetParams,
    tensorrt_unavailable: str | None,
    devices: Sequence[OnDevice] = (),
) -> tuple[dict[str, Any], Recommendation]:
    """The content of reports/summary.json, and the recommendation for this machine with its reasons.

    A number that was not measured is None, and the row's ``notes`` say why.

    Args:
        tensorrt_unavailable: why TensorRT cannot run on this machine, in one sentence; None where it can.
        devices: of targets/; their rows follow those of this machine.

    Raises:
        LineageError: a row measured a file that is not the exported one; the message names both hashes.
    """
    files = {file["name"]: file for file in export["files"]}
    accuracy = _index(str(EVALUATION), evaluation["rows"], files)
    latency = _index(str(BENCHMARK), benchmark["rows"], files)
    rows = []
    for file in export["files"]:
        for name in (name for name in NAMES if FORMAT_READ_BY[name] == file["format"]):
            measured = accuracy.get((file["name"], name)), latency.get((file["name"], name))
            if measured != (None, None):
                rows.append(_row(file, name, benchmark["device"], evaluation["test_images"], *measured))
            elif name == "tensorrt" and file["role"] == "student":
                rows.append(_unmeasured(file, name, benchmark["device"], tensorrt_unavailable))
            elif name != "tensorrt":
                rows.append(_unmeasured(file, name, benchmark["device"], None))
    if evaluation["shot_classes"] is not None:
        for row in rows:
            _set_long_tail(row, accuracy.get((row["name"], row["runtime"])), evaluation["shot_classes"])
    recommendation = recommend(rows, budget)
    if evaluation["shot_classes"] is not None:
        for found in devices:
            for row in found.rows:
                row.update(dict.fromkeys(LONG_TAIL_KEYS))
    summary = {
        "schema": 1,
        "student": _network(student, rows),
        "teacher": _network(teacher, rows),
        "rows": rows + [row for found in devices for row in found.rows],
        "recommended": reference(recommendation.row),
        "devices": [found.entry for found in devices],
    }
    return summary, recommendation


_CARD = ("network", "parameters", "macs", "num_classes", "image_size", "source", "epochs", "seed", "val_top1")


def _index(path: str, rows: Sequence[Json], files: Mapping[str, Json]) -> dict[tuple[str, str], Json]:
    """Rows by (file, runtime), after a check that each measured an exported file."""
    for row in rows:
        name = row["name"]
        if name not in files:
            raise LineageError(
                f"{path} has a row for {name}, which the export manifest does not list; run `dvc repro` so that both "
                "come from one run"
            )
        recorded, exported = str(row.get("sha256")), files[name]["sha256"]
        if recorded != exported:
            raise LineageError(
                f"{path} measured {name} with hash {recorded[:12]}, but the exported file has hash {exported[:12]}; "
                "run `dvc repro` so that both come from one run"
            )
    return {(row["name"], row["runtime"]): row for row in rows}


def _row(
    file: Json, runtime_name: str, device: str, images: int, accuracy: Json | None, latency: Json | None
) -> dict[str, Any]:
    # A runtime may run on another device than the one the benchmark is named for: TensorRT on the GPU.
    row = blank(file, runtime_name, (latency or {}).get("device_name") or device)
    notes: list[str] = row["notes"]
    if accuracy is None:
        notes.append(f"accuracy not measured: {runtime(runtime_name)} is not among evaluate.runtimes")
    else:
        row.update({key: accuracy.get(key) for key in _ACCURACY})
        row["images"] = images
        empty = note_empty_groups(row, "test image")
        if row["delta_top1"] is None or row["delta_ci_low"] is None or row["delta_ci_high"] is None:
            notes.append("difference to the torch student not measured: evaluation gave none")
        if row["delta_top1_high_energy"] is None and "high" not in empty:
            notes.append("high-energy difference to the torch student not measured: evaluation gave none")
        high = accuracy["delta_groups"]["high"]
        row.update(zip(_HIGH_INTERVAL, (None, None) if high is None else (high["low"], high["high"]), strict=True))
        _set_routing(row, accuracy["routing"])
    if latency is None:
        notes.append(f"latency not measured: {runtime(runtime_name)} is not among benchmark.runtimes")
    else:
        set_latency(row, latency)
    set_executed(row, accuracy, latency)
    _set_parity(row, file, (latency or {}).get("accuracy"))
    return row


def _set_routing(row: dict[str, Any], routing: Json) -> None:
    router, wanted = routing["energy"], f"{100 * routing['wanted_top1']:g} %"
    row.update(
        energy_threshold=router["threshold"], on_device_coverage=router["coverage"], on_device_top1=router["top1"]
    )
    if router["threshold"] is None:
        kept = "all of its answers are" if router["coverage"] else "no share of its surest answers is"
        row["notes"].append(f"no energy threshold: {kept} {wanted} right on the validation split")
    if router["top1"] is None:
        row["notes"].append("accuracy on the device not measured: no test image is kept there")


def _set_long_tail(row: dict[str, Any], accuracy: Json | None, classes: Mapping[str, int]) -> None:
    row.update({key: None if accuracy is None else accuracy.get(key) for key in LONG_TAIL_KEYS})
    if accuracy is not None:
        row["notes"] += [
            f"accuracy on {name}-shot classes not measured: there is none"
            for name in classes
            if row[f"top1_{name}_shot"] is None
        ]


def _unmeasured(file: Json, runtime_name: str, device: str, reason: str | None) -> dict[str, Any]:
    row = blank(file, runtime_name, device)
    if reason is None:
        reason = f"{runtime(runtime_name)} is not among evaluate.runtimes and benchmark.runtimes"
    row["notes"].append(f"not measured on this machine: {reason.rstrip('.')}")
    if runtime_name == file.get("parity", {}).get("runtime"):
        _set_parity(row, file)
    return row


def _set_parity(row: dict[str, Any], file: Json, timed: Json | None = None) -> None:
    """Parity as the export stage found it, else as the benchmark did on the images that it checks (``timed``)."""
    parity, name = file.get("parity") or {}, row["runtime"]
    if timed is not None and timed["parity_max_abs"] is not None and parity.get("runtime") != name:
        row.update({key: timed[key] for key in ("parity_max_abs", "parity_top1_agreement")})
    elif not parity:
        row["notes"].append("parity not measured: the export stage does not compare this file")
    elif parity["runtime"] != name:
        compared = runtime(parity["runtime"])
        row["notes"].append(f"parity not measured in {runtime(name)}: the export stage compared in {compared}")
    else:
        row.update(parity_max_abs=parity["max_abs"], parity_top1_agreement=parity["top1_agreement"])


def _network(card: Json, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of a network, with its accuracy on the test split where it was measured."""
    entry: dict[str, Any] = {key: card[key] for key in _CARD}
    entry["weights_sha256"] = card["weights_sha256"]
    reference = reference_row(rows, card["role"])
    for key in ("top1", *GROUPS):
        entry[key] = None if reference is None else reference[key]
    if reference is None:
        missing = ["test accuracy not measured: no file of this network was evaluated in fp32"]
    else:
        missing = [note for note in reference["notes"] if note.startswith("accuracy on")]
    entry["notes"] = missing
    return entry


def reference_row(rows: Sequence[Mapping[str, Any]], role: str) -> Mapping[str, Any] | None:
    """The evaluated row that stands for the network itself: fp32, in torch where there is one; None without one."""
    evaluated = [row for row in rows if row["role"] == role and row["precision"] == "fp32" and row["top1"] is not None]
    order = ("torch", "onnxruntime", "openvino", "tensorrt")
    return min(evaluated, key=lambda row: order.index(row["runtime"]), default=None)
