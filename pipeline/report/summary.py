"""The table of all measurements: one row per exported file, runtime and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifacts import check_lineage
from pipeline.config import BudgetParams
from pipeline.device.statistics import required_samples
from pipeline.errors import LineageError
from pipeline.layout import BENCHMARK, EVALUATION, EXPORT_MANIFEST
from pipeline.report.formatting import runtime
from pipeline.report.inputs import Json
from pipeline.report.recommend import Recommendation, recommend
from pipeline.runtimes import FORMAT_READ_BY, NAMES

# The flat keys of a row; every one of them is present, and null where not measured.
ROW_KEYS = (
    "name",
    "role",
    "format",
    "precision",
    "precision_executed",
    "runtime",
    "device",
    "batch",
    "top1",
    "top1_low_energy",
    "top1_mid_energy",
    "top1_high_energy",
    "delta_top1",
    "delta_ci_low",
    "delta_ci_high",
    "delta_top1_high_energy",
    "delta_high_energy_ci_low",
    "delta_high_energy_ci_high",
    "energy_threshold",
    "on_device_coverage",
    "on_device_top1",
    "parity_max_abs",
    "parity_top1_agreement",
    "latency_p50_ms",
    "latency_ci_low_ms",
    "latency_ci_high_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "throughput_ips",
    "verdict",
    "size_bytes",
    "sha256",
    "notes",
)
# further keys of a row where the training split is long-tailed
LONG_TAIL_KEYS = ("balanced_accuracy", "top1_many_shot", "top1_medium_shot", "top1_few_shot")
_GROUPS = {"top1_low_energy": "low", "top1_mid_energy": "middle", "top1_high_energy": "high"}
_ACCURACY = ("top1", *_GROUPS, "delta_top1", "delta_ci_low", "delta_ci_high", "delta_top1_high_energy")
_HIGH_INTERVAL = ("delta_high_energy_ci_low", "delta_high_energy_ci_high")
_PERCENTILES = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")
_LATENCY = (*_PERCENTILES, "latency_ci_low_ms", "latency_ci_high_ms", "throughput_ips", "verdict")
_SAMPLES_NEEDED = {"p50": required_samples(0.5), "p90": required_samples(0.9), "p99": required_samples(0.99)}


def build_summary(
    *,
    data: Json,
    teacher: Json,
    student: Json,
    export: Json,
    evaluation: Json,
    benchmark: Json,
    budget: BudgetParams,
    tensorrt_unavailable: str | None,
) -> tuple[dict[str, Any], Recommendation]:
    """The content of reports/summary.json, and the recommendation in it with its reasons.

    A number that was not measured is None, and the row's ``notes`` say why.

    Args:
        tensorrt_unavailable: why TensorRT cannot run on this machine, in one sentence; None where it can.

    Raises:
        LineageError: the files were exported from another student, or a row measured a file that is not the exported
            one; the message names both hashes.
    """
    expected = {
        "data": data["fingerprint"],
        "teacher": teacher["weights_sha256"],
        "student": student["weights_sha256"],
    }
    check_lineage(EXPORT_MANIFEST, export["lineage"], expected)
    files = {file["name"]: file for file in export["files"]}
    accuracy = _index(str(EVALUATION), evaluation["rows"], files)
    latency = _index(str(BENCHMARK), benchmark["rows"], files)
    rows = []
    for file in export["files"]:
        for name in (name for name in NAMES if FORMAT_READ_BY[name] == file["format"]):
            measured = accuracy.get((file["name"], name)), latency.get((file["name"], name))
            if measured != (None, None):
                rows.append(_row(file, name, benchmark["device"], *measured))
            elif name == "tensorrt" and file["role"] == "student":
                rows.append(_unmeasured(file, name, benchmark["device"], tensorrt_unavailable))
            elif name != "tensorrt":
                rows.append(_unmeasured(file, name, benchmark["device"], None))
    if evaluation["shot_classes"] is not None:
        for row in rows:
            _set_long_tail(row, accuracy.get((row["name"], row["runtime"])), evaluation["shot_classes"])
    recommendation = recommend(rows, budget)
    chosen = recommendation.row
    summary = {
        "schema": 1,
        "student": _network(student, rows),
        "teacher": _network(teacher, rows),
        "rows": rows,
        "recommended": None if chosen is None else {key: chosen[key] for key in _REFERENCE},
    }
    return summary, recommendation


_REFERENCE = ("name", "format", "precision", "runtime", "device", "size_bytes", "sha256")
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


def _row(file: Json, runtime_name: str, device: str, accuracy: Json | None, latency: Json | None) -> dict[str, Any]:
    # A runtime may run on another device than the one the benchmark is named for: TensorRT on the GPU.
    row = _blank(file, runtime_name, (latency or {}).get("device_name") or device)
    notes: list[str] = row["notes"]
    if accuracy is None:
        notes.append(f"accuracy not measured: {runtime(runtime_name)} is not among evaluate.runtimes")
    else:
        row.update({key: accuracy.get(key) for key in _ACCURACY})
        empty = [group for key, group in _GROUPS.items() if row[key] is None]
        notes += [f"accuracy on {group}-energy images not measured: no test image is in this group" for group in empty]
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
        row.update({key: latency.get(key) for key in _LATENCY})
        notes += [*(note.rstrip(".") for note in latency.get("notes", ())), *_latency_gaps(latency)]
        notes += [f"latency {_verdict(row)}: {reason.rstrip('.')}" for reason in latency.get("reasons", ())]
    _set_executed(row, accuracy, latency)
    _set_parity(row, file)
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
    row.update({key: None if accuracy is None else accuracy[key] for key in LONG_TAIL_KEYS})
    if accuracy is not None:
        row["notes"] += [
            f"accuracy on {name}-shot classes not measured: there is none"
            for name in classes
            if row[f"top1_{name}_shot"] is None
        ]


def _unmeasured(file: Json, runtime_name: str, device: str, reason: str | None) -> dict[str, Any]:
    row = _blank(file, runtime_name, device)
    if reason is None:
        reason = f"{runtime(runtime_name)} is not among evaluate.runtimes and benchmark.runtimes"
    row["notes"].append(f"not measured on this machine: {reason.rstrip('.')}")
    if runtime_name == file.get("parity", {}).get("runtime"):
        _set_parity(row, file)
    return row


def _blank(file: Json, runtime_name: str, device: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ROW_KEYS)
    row.update({key: file[key] for key in ("name", "role", "format", "precision", "batch", "size_bytes", "sha256")})
    row.update(runtime=runtime_name, device=device, notes=[])
    return row


def _latency_gaps(latency: Json) -> list[str]:
    """A reason for each null of a benchmark row that the row itself does not explain."""
    own = " ".join([*latency.get("notes", ()), *latency.get("reasons", ())])
    if "latency not measured" in own:
        return []
    gaps = []
    for key in _PERCENTILES:
        name = key.split("_")[1]
        if latency.get(key) is None and name not in own:
            gaps.append(f"{name} not measured: {latency.get('samples', 0)} samples, {_SAMPLES_NEEDED[name]} needed")
    if (
        latency.get("latency_ci_low_ms") is None or latency.get("latency_ci_high_ms") is None
    ) and "interval" not in own:
        gaps.append("interval of the latency not measured: the benchmark gave none")
    gaps += [
        f"{name} not measured: the benchmark gave none"
        for name, key in (("throughput", "throughput_ips"), ("verdict", "verdict"))
        if latency.get(key) is None
    ]
    return gaps


def _verdict(row: Mapping[str, Any]) -> str:
    return str(row["verdict"]).replace("_", " ")


def _set_executed(row: dict[str, Any], accuracy: Json | None, latency: Json | None) -> None:
    """The precision that was executed; None where accuracy and latency come from different ones.

    Where only the counts of a mixed precision differ, because the batch sizes do, it is that of the latency.
    """
    executed = [
        str(measured["precision_executed"])
        for measured in (latency, accuracy)
        if measured is not None and measured["precision_executed"] is not None
    ]
    if not executed:
        row["notes"].append("executed precision not measured: the file did not run")
        return
    if len({_dominant(precision) for precision in executed}) > 1:
        row["notes"].append(f"executed precision not one: accuracy in {executed[1]}, latency in {executed[0]}")
        return
    row["precision_executed"] = executed[0]
    if len(set(executed)) > 1:
        row["notes"].append(f"executed precision: accuracy in {executed[1]}, latency in {executed[0]}")
    if _dominant(executed[0]) != row["precision"]:
        row["notes"].append(f"{row['precision']} not executed: {runtime(row['runtime'])} ran {executed[0]}")


def _dominant(precision: str) -> str:
    """The most frequent precision of ``mixed:int8=20,fp32=1``; a precision that is not mixed itself."""
    return precision.removeprefix("mixed:").split("=")[0]


def _set_parity(row: dict[str, Any], file: Json) -> None:
    parity, name = file.get("parity") or {}, row["runtime"]
    if not parity:
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
    for key in ("top1", *_GROUPS):
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
