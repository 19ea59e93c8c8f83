"""Realistic inputs of the report, built by functions: digits, resnet20 to resnet8, on a machine without TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.config import BudgetParams
from pipeline.lineage import Run
from pipeline.portable.accuracy import Accuracy, pack_correct
from pipeline.portable.documents import ColdStart, MeasuredRow, Memory, Minute, Round, Sustained, Throughput
from pipeline.report.devices import Device
from pipeline.report.inputs import Curve, Inputs
from pipeline.report.rows import Row, rows_here
from pipeline.store import documents
from pipeline.store.tables import EnergyLineage, SubsetLineage, Table
from tests.conftest import squashed

CLASS_NAMES = [str(digit) for digit in range(10)]
NO_TENSORRT = "tensorrt is not installed; install it with `pip install tensorrt`."
TEST_IMAGES = 360
GROUP_SIZES = {"low": 69, "mid": 219, "high": 72}

# name, role, format, precision, size in bytes
FILES = [
    ("student_fp32.onnx", "student", "onnx", "fp32", 318_114),
    ("student_fp16.onnx", "student", "onnx", "fp16", 163_402),
    ("student_int8.onnx", "student", "onnx", "int8", 97_861),
    ("student_fp32.xml", "student", "openvino", "fp32", 361_870),
    ("student_fp16.xml", "student", "openvino", "fp16", 209_334),
    ("student_int8.xml", "student", "openvino", "int8", 171_250),
    ("student_fp32.pt2", "student", "torch", "fp32", 402_911),
    ("teacher_fp32.onnx", "teacher", "onnx", "fp32", 1_103_207),
]
# wrong answers in the low, middle and high group, and median latency in ms, per file
ERRORS = {
    "student_fp32.onnx": (0, 2, 7),
    "student_fp16.onnx": (0, 2, 7),
    "student_int8.onnx": (0, 3, 7),
    "student_fp32.xml": (0, 2, 7),
    "student_fp16.xml": (0, 2, 7),
    "student_int8.xml": (0, 2, 8),
    "student_fp32.pt2": (0, 2, 7),
    "teacher_fp32.onnx": (0, 1, 4),
}
LATENCY = {
    "student_fp32.onnx": 0.412,
    "student_fp16.onnx": 0.533,
    "student_int8.onnx": 0.298,
    "student_fp32.xml": 0.371,
    "student_fp16.xml": 0.374,
    "student_int8.xml": 0.262,
    "student_fp32.pt2": 1.94,
    "teacher_fp32.onnx": 1.31,
}
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
VERSIONS = {"onnxruntime": "1.23.2", "openvino": "2026.4.1", "torch": "2.14.0"}
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU", "torch": "CPU"}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def changed(part: Any, **values: Any) -> Any:
    """A copy of a document, or of a part of one, with other values."""
    return dataclasses.replace(part, **values) if dataclasses.is_dataclass(part) else part.model_copy(update=values)


def with_rows(document: Any, change: Callable[[Any], Any], *names: str) -> Any:
    """The document with the rows of some files changed, or of all; a row whose change is None is left out."""
    rows = [row if names and row.name not in names else change(row) for row in document.rows]
    return changed(document, rows=[row for row in rows if row is not None])


def without(run: Run, name: str) -> None:
    """Leave a file out of a run."""
    run.exported = changed(run.exported, files=[file for file in run.exported.files if file.name != name])
    run.evaluation = with_rows(run.evaluation, lambda _: None, name)
    run.benchmark = with_rows(run.benchmark, lambda _: None, name)


def data_card() -> documents.DataCard:
    return documents.DataCard(
        name="digits",
        storage="packed",
        class_names=list(CLASS_NAMES),
        image=squashed(32),
        mean=[0.3053, 0.3053, 0.3053],
        std=[0.3552, 0.3552, 0.3552],
        counts=documents.SplitCounts(train=1293, val=144, test=TEST_IMAGES),
        train_class_counts=[130, 130, 130, 129, 129, 129, 129, 129, 129, 129],
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, 1,797 scans of 8x8 pixels",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        fingerprint=sha("data"),
    )


def card(role: str) -> documents.NetworkCard:
    teacher = role == "teacher"
    made_from = {} if teacher else {name: sha(name) for name in ("teacher", "energy", "subset")}
    distill = {
        "network": "resnet8",
        "loss": {"name": "kd", "ce_weight": 0.1, "kd_weight": 0.9},
        "temperatures": {"low_energy": 6.0, "mid": 4.0, "high_energy": 2.0},
        "assignment": "sample",
    }
    return documents.NetworkCard(
        role=role,
        network="resnet20" if teacher else "resnet8",
        num_classes=10,
        class_names=list(CLASS_NAMES),
        image=squashed(32),
        mean=[0.3053, 0.3053, 0.3053],
        std=[0.3552, 0.3552, 0.3552],
        source="trained",
        seed=0,
        epochs=14 if teacher else 30,
        val_top1=0.986 if teacher else 0.979,
        best_val_top1=0.993 if teacher else 0.979,
        best_val_epoch=11 if teacher else 29,
        kept_epoch=11 if teacher else 29,
        precision="fp32",
        parameters=272_474 if teacher else 78_042,
        macs=40_813_184 if teacher else 12_501_632,
        weights_sha256=sha(role),
        lineage=documents.NetworkLineage(data=sha("data"), **made_from),
        distill=None if teacher else distill,
        heda=None if teacher else {"fraction": 0.4, "mix": "cutmix", "kd_weight": 0.9, "mixed_label_weight": 0.0},
    )


def made_from() -> documents.MadeFrom:
    return documents.MadeFrom(**{name: sha(name) for name in ("data", "teacher", "energy", "student")})


def executed(name: str, precision: str) -> str:
    if precision == "fp16":
        return "fp32"
    return "mixed:int8=9,fp32=1" if name == "student_int8.xml" else precision


def export_manifest() -> documents.ExportManifest:
    error = {"fp32": 4.8e-6, "fp16": 7.3e-3, "int8": 0.412}
    files = [
        documents.ExportedFile(
            name=name,
            role=role,
            format=form,
            precision=precision,
            sha256=sha(name),
            size_bytes=size,
            batch=None,
            fp32_layers=["/conv1/Conv"] if precision == "int8" else [],
            parity=documents.FileParity(
                images=144,
                max_abs=error[precision],
                mean_abs=error[precision] / 6,
                cosine={"fp32": 1.0, "fp16": 0.999998, "int8": 0.99921}[precision],
                top1_agreement=0.9931 if precision == "int8" else 1.0,
                largest_flipped_margin=0.21 if precision == "int8" else None,
                delta_top1=-0.0069 if precision == "int8" else 0.0,
                delta_ci_low=-0.021,
                delta_ci_high=0.014,
                energy_max_abs=error[precision] / 2,
                runtime=RUNTIMES[form],
                executed_precision=executed(name, precision),
            ),
        )
        for name, role, form, precision, size in FILES
    ]
    return documents.ExportManifest(lineage=made_from(), opset=18, files=files)


def accuracy(name: str, images: int, sizes: dict[str, int], half: float, **parity: float | None) -> Accuracy:
    """Of a file with its errors among so many images, beside the torch student."""
    errors, reference = ERRORS[name], ERRORS["student_fp32.pt2"]
    difference = (sum(reference) - sum(errors)) / images
    groups: dict[str, float] = {}
    for (group, size), wrong, before in zip(sizes.items(), errors, reference, strict=True):
        delta = (before - wrong) / size
        groups |= {
            f"top1_{group}_energy": 1 - wrong / size,
            f"delta_top1_{group}_energy": delta,
            f"delta_{group}_energy_ci_low": delta - 0.02,
            f"delta_{group}_energy_ci_high": delta + 0.02,
        }
    return Accuracy(
        images=images,
        top1=1 - sum(errors) / images,
        correct=pack_correct(np.arange(images) >= sum(errors)),
        **groups,
        delta_top1=difference,
        delta_ci_low=difference - half,
        delta_ci_high=difference + half,
        **dict.fromkeys(("parity_max_abs", "parity_mean_abs", "parity_top1_agreement", "energy_max_abs")) | parity,
    )


def routing() -> documents.Routing:
    curve = [min(1.0, 1.02 - 0.045 * share / 20) for share in range(1, 21)]
    kept = {"coverage": 0.95, "kept": 342, "top1": 339 / 342}
    return documents.Routing(
        wanted_top1=0.99,
        energy=documents.Router(threshold=-8.25, **kept, aurc=0.0021, curve=curve),
        max_softmax=documents.Router(threshold=0.31, **kept, aurc=0.0026, curve=[value - 0.002 for value in curve]),
    )


def evaluation() -> documents.Evaluation:
    rows = [
        documents.EvaluatedRow(
            name=name,
            runtime=RUNTIMES[form],
            sha256=sha(name),
            precision_executed=executed(name, precision),
            precision_mismatch=None,
            provider=PROVIDERS[RUNTIMES[form]],
            runtime_version=VERSIONS[RUNTIMES[form]],
            accuracy=accuracy(name, TEST_IMAGES, GROUP_SIZES, 0.006),
            balanced_accuracy=1 - sum(ERRORS[name]) / TEST_IMAGES - 0.001,
            shots=None,
            ece=0.012,
            routing=routing(),
        )
        for name, _, form, precision, _ in FILES
    ]
    return documents.Evaluation(
        lineage=made_from(), test_images=TEST_IMAGES, group_sizes=GROUP_SIZES, shot_classes=None, rows=rows
    )


def rounds(*medians: float) -> list[Round]:
    of_all = {"samples": 150, "drift": 0.0, "started_at": 1795381664.0, "cut_short": False, "warmup_count": 50}
    of_all |= {"import_ms": 400.0, "load_ms": 30.0, "first_inference_ms": 9.0, "peak_rss_kb": None}
    return [
        Round(median_ms=each, mean_ms=each, min_ms=each, sensors_before={}, sensors_after={}, **of_all)
        for each in medians
    ]


def measurement(device: str, machine: dict[str, Any], settings: dict[str, Any], rows: list[MeasuredRow]) -> Any:
    return documents.Measurement(
        device=device,
        machine=machine,
        settings=settings,
        lineage=made_from(),
        bundle_sha256=sha("bundle"),
        samples_sha256=sha("samples"),
        started_at=1795381664.05,
        seconds=912.0,
        tuning={"allowed": False, "changed": {}, "notes": []},
        notes=[],
        rows=rows,
    )


def benchmark() -> documents.Measurement:
    rows = []
    for name, role, form, precision, size in FILES:
        p50, slow = LATENCY[name], form == "torch"
        rows.append(
            MeasuredRow(
                name=name,
                runtime=RUNTIMES[form],
                precision=precision,
                batch=1,
                device_name="Example CPU",
                samples=750 if not slow else 540,
                rounds=rounds(*(factor * p50 for factor in (0.975, 0.99, 1.0, 1.01, 1.03))),
                latency_p50_ms=p50,
                latency_p90_ms=1.14 * p50,
                latency_p99_ms=None if slow else 1.52 * p50,
                latency_ci_low_ms=0.975 * p50,
                latency_ci_high_ms=1.03 * p50,
                throughput_ips=1000 / (1.05 * p50),
                precision_executed=executed(name, precision),
                verdict="noisy" if slow else "stable",
                reasons=["round medians differ by 14%."] if slow else [],
                notes=["p99 not measured: 540 samples, 662 needed."] if slow else [],
                role=role,
                format=form,
                sha256=sha(name),
                size_bytes=size,
            )
        )
    machine = {
        "cpu": "Example CPU @ 2.10GHz",
        "board": None,
        "cpu_flags": [f"flag{i}" for i in range(60)],
        "logical_cores": 2,
        "affinity": [0, 1],
        "memory_total_kb": 24_683_656,
        "python": "3.11.7",
        "virtual_machine": True,
        "state": {"time": 1795381664.05, "load_average": [0.31, 0.4, 0.2], "temperatures_c": None},
    }
    settings = {"batch_size": 1, "threads": 0, "rounds": 5, "warmup_seconds": 0.2, "min_seconds": 0.5, "min_count": 250}
    return measurement("Example CPU", machine, settings, rows)


def minute(p50: float) -> Minute:
    unknown = dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "temperature_c", "clock_khz", "throttle_count"))
    unknown |= dict.fromkeys(("raspberry_throttled", "nvidia"))
    return Minute(samples=900, seconds=60.0, whole=True, p50_ms=p50, mean_ms=p50, max_ms=2 * p50, notes=[], **unknown)


def device_result() -> documents.Measurement:
    """The result of the stage measure for a device that runs the ONNX files, ten times slower than this machine."""
    rows = []
    for name, role, form, precision, size in FILES:
        if form != "onnx":
            continue
        p50, teacher = 10 * LATENCY[name], role == "teacher"
        found = {
            "parity_max_abs": 5.1e-6,
            "parity_mean_abs": 4e-7,
            "parity_top1_agreement": 1.0,
            "energy_max_abs": 2e-6,
        }
        rows.append(
            MeasuredRow(
                name=name,
                runtime="onnxruntime",
                precision=precision,
                batch=1,
                device_name="Example Board",
                samples=1500,
                rounds=rounds(*(factor * p50 for factor in (0.98, 0.99, 1.0, 1.01, 1.02))),
                latency_p50_ms=p50,
                latency_p90_ms=1.1 * p50,
                latency_p99_ms=1.3 * p50,
                latency_ci_low_ms=0.98 * p50,
                latency_ci_high_ms=1.02 * p50,
                throughput_ips=1000 / p50,
                precision_executed=executed(name, precision),
                verdict="throttled" if teacher else "stable",
                reasons=["the CPU clock fell from 2400 to 1500 MHz."] if teacher else [],
                notes=["energy per inference not measured: RAPL is not available; the board shows no INA sensor."],
                accuracy=accuracy(name, 256, {"low": 49, "mid": 156, "high": 51}, 0.01, **found),
                cold=ColdStart(rounds=3, import_ms=412.0, load_ms=31.0, first_inference_ms=9.7, dropped_cache=True),
                memory=Memory(peak_rss_kb=81_240, model_rss_kb=5_120),
                sustained=Sustained(
                    minutes=[minute(factor * p50) for factor in (1.0, 1.2, 1.21, 1.2)],
                    ended_by="plateau",
                    plateau_ms=1.2 * p50,
                    last_to_first=1.2,
                    seconds=240.0,
                    evidence=[],
                ),
                throughput=[Throughput(batch=8, threads=4, images_per_second=2500 / p50)],
                role=role,
                format=form,
                sha256=sha(name),
                size_bytes=size,
            )
        )
    machine = {"board": "Example Board", "cpu": "Cortex-A76", "machine": "aarch64", "emulated": False}
    settings = {"runtimes": ["onnxruntime"], "images": 256, "threads": 4}
    return measurement("Example Board", machine, settings, rows)


def device(name: str = "board", measured: documents.Measurement | None = None, **limits: float) -> Device:
    """A measured device with the limits of its budget."""
    return Device(name, measured or device_result(), budget(**limits))


def budget(**limits: float) -> BudgetParams:
    return BudgetParams(**(dict.fromkeys(BudgetParams.model_fields) | limits))


def energy_table(images: int, seed: int, split: str) -> Table[EnergyLineage]:
    generator = np.random.default_rng(seed)
    energy = (-11.5 - 3.2 * generator.beta(6, 2.2, images)).astype(np.float32)
    order = np.argsort(energy, kind="stable")
    group = np.ones(images, dtype=np.int8)
    group[order[: images // 5]] = 0
    group[order[images - images // 5 :]] = 2
    hardness = (energy - energy.min()) / (energy.max() - energy.min())
    columns = {
        "index": np.arange(images, dtype=np.int64),
        "label": generator.integers(0, 10, images, dtype=np.int64),
        "energy": energy,
        "confidence": np.clip(0.999 - 0.4 * hardness**2, 0.3, 1).astype(np.float32),
        "correct": generator.random(images) > 0.12 * hardness**2,
        "group": group,
    }
    lineage = EnergyLineage(
        data=sha("data"),
        teacher=sha("teacher"),
        split=split,
        temperature=4.0,
        low_threshold=float(energy[order[images // 5]]),
        high_threshold=float(energy[order[images - images // 5 - 1]]),
        energy=sha("energy") if split == "test" else None,
    )
    return Table(columns, lineage)


def subset_table(energy: Table[EnergyLineage], kind: str = "high_energy") -> Table[SubsetLineage]:
    chosen = np.sort(np.argsort(energy.columns["energy"], kind="stable")[-517:])
    columns = {"index": chosen, **{key: energy.columns[key][chosen] for key in ("label", "energy")}}
    return Table(columns, SubsetLineage(data=sha("data"), energy=sha("energy"), fraction=0.4, subset=kind))


def learning_curves() -> dict[str, dict[str, Curve]]:
    curves = {}
    for role, epochs, best in (("teacher", 14, 0.986), ("student", 30, 0.979)):
        steps = [float(epoch) for epoch in range(epochs)]
        loss = [2.2 * float(np.exp(-epoch / (epochs / 5))) + 0.02 for epoch in range(epochs)]
        top1 = [best - 0.7 * float(np.exp(-epoch / (epochs / 7))) for epoch in range(epochs)]
        curves[role] = {"train_loss": Curve(steps, loss), "val_top1": Curve(steps, top1)}
    return curves


def build_inputs(**changes: Any) -> Inputs:
    """Fresh inputs; keywords replace whole fields."""
    run = Run()
    # a cached property that has its value reads no file
    run.data, run.teacher, run.student = data_card(), card("teacher"), card("student")
    run.energy, run.energy_test = energy_table(1293, 1, "train"), energy_table(TEST_IMAGES, 2, "test")
    run.subset = subset_table(run.energy)
    run.energy_sha256, run.subset_sha256 = sha("energy"), sha("subset")
    run.exported, run.evaluation, run.benchmark = export_manifest(), evaluation(), benchmark()
    values: dict[str, Any] = {
        "run": run,
        "budget": budget(max_top1_drop=0.01),
        "tensorrt_unavailable": NO_TENSORRT,
        "curves": learning_curves(),
    }
    return Inputs(**(values | changes))


def row_of(rows: list[Row], name: str, runtime: str) -> Row:
    (row,) = [row for row in rows if row.key == (name, runtime)]
    return row


@pytest.fixture
def measured() -> documents.Measurement:
    """A device's result."""
    return device_result()


@pytest.fixture
def inputs() -> Inputs:
    """Fresh inputs, free to change."""
    return build_inputs()


@pytest.fixture
def rows() -> list[Row]:
    """Rows of this machine of the default inputs, free to change."""
    return rows_here(build_inputs().run, NO_TENSORRT)
