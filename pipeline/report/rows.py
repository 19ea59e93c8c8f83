"""One row of the table: its keys, and what is said of a latency and an executed precision, on whatever device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.device.benchmark.statistics import required_samples
from pipeline.report.formatting import runtime

Json = Mapping[str, Any]

# The flat keys of a row; every one of them is present, and null where not measured. ``target`` is the name of a device
# in targets/, null for this machine; ``images`` are those behind top1.
ROW_KEYS = (
    "name",
    "role",
    "format",
    "precision",
    "precision_executed",
    "runtime",
    "device",
    "target",
    "batch",
    "images",
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
GROUPS = {"top1_low_energy": "low", "top1_mid_energy": "middle", "top1_high_energy": "high"}
REFERENCE = ("name", "format", "precision", "runtime", "device", "size_bytes", "sha256")  # of a recommended row
_PERCENTILES = ("latency_p50_ms", "latency_p90_ms", "latency_p99_ms")
_LATENCY = (*_PERCENTILES, "latency_ci_low_ms", "latency_ci_high_ms", "throughput_ips", "verdict")
_SAMPLES_NEEDED = {"p50": required_samples(0.5), "p90": required_samples(0.9), "p99": required_samples(0.99)}


def blank(file: Json, runtime_name: str, device: str, target: str | None = None) -> dict[str, Any]:
    """A row of an export manifest's file with nothing measured.

    Args:
        device: what the hardware calls itself.
        target: name of the device in targets/; None on this machine.
    """
    row: dict[str, Any] = dict.fromkeys(ROW_KEYS)
    row.update({key: file[key] for key in ("name", "role", "format", "precision", "batch", "size_bytes", "sha256")})
    row.update(runtime=runtime_name, device=device, target=target, notes=[])
    return row


def reference(row: Json | None) -> dict[str, Any] | None:
    """What names a recommended row; None if there is none."""
    return None if row is None else {key: row[key] for key in REFERENCE}


def note_empty_groups(row: dict[str, Any], images: str) -> list[str]:
    """The energy groups of a row with an accuracy that none of the ``images`` is in, each noted."""
    empty = [group for key, group in GROUPS.items() if row[key] is None]
    row["notes"] += [f"accuracy on {group}-energy images not measured: no {images} is in this group" for group in empty]
    return empty


def set_latency(row: dict[str, Any], latency: Json) -> None:
    """The numbers of a benchmark row, with a reason for each null and for each doubt."""
    row.update({key: latency.get(key) for key in _LATENCY})
    row["notes"] += [*(note.rstrip(".") for note in latency.get("notes", ())), *_latency_gaps(latency)]
    row["notes"] += [f"latency {_verdict(row)}: {reason.rstrip('.')}" for reason in latency.get("reasons", ())]


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


def set_executed(row: dict[str, Any], accuracy: Json | None, latency: Json | None) -> None:
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
