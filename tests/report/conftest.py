"""Realistic inputs of the report, built by functions: digits, resnet20 to resnet8, on a machine without TensorRT."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.config import BudgetParams
from pipeline.report import Curve, Device, Inputs, Recommendation, Table, build_summary, on_device

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


def data_card() -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "digits",
        "class_names": list(CLASS_NAMES),
        "image_size": 32,
        "mean": [0.3053, 0.3053, 0.3053],
        "std": [0.3552, 0.3552, 0.3552],
        "counts": {"train": 1293, "val": 144, "test": TEST_IMAGES},
        "train_class_counts": [130, 130, 130, 129, 129, 129, 129, 129, 129, 129],
        "source": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, 1,797 scans of 8x8 pixels",
        "licence": "CC BY 4.0 (UCI Machine Learning Repository)",
        "fingerprint": sha("data"),
    }


def card(role: str) -> dict[str, Any]:
    teacher = role == "teacher"
    lineage = {"data": sha("data")}
    if not teacher:
        lineage |= {"teacher": sha("teacher"), "energy": sha("energy"), "subset": sha("subset")}
    made = {
        "schema": 1,
        "role": role,
        "network": "resnet20" if teacher else "resnet8",
        "num_classes": 10,
        "image_size": 32,
        "parameters": 272_474 if teacher else 78_042,
        "macs": 40_813_184 if teacher else 12_501_632,
        "mean": [0.3053, 0.3053, 0.3053],
        "std": [0.3552, 0.3552, 0.3552],
        "class_names": list(CLASS_NAMES),
        "source": "trained",
        "epochs": 14 if teacher else 30,
        "seed": 0,
        "val_top1": 0.986 if teacher else 0.979,
        "best_val_top1": 0.993 if teacher else 0.979,
        "best_val_epoch": 11 if teacher else 29,
        "weights_sha256": sha(role),
        "lineage": lineage,
    }
    if not teacher:
        made["distill"] = {
            "network": "resnet8",
            "loss": {"name": "kd", "ce_weight": 0.1, "kd_weight": 0.9},
            "temperatures": {"low_energy": 6.0, "mid": 4.0, "high_energy": 2.0},
            "assignment": "sample",
        }
        made["heda"] = {"fraction": 0.4, "mix": "cutmix", "kd_weight": 0.9, "mixed_label_weight": 0.0}
    return made


def exported_lineage() -> dict[str, str]:
    return {key: sha(key) for key in ("data", "teacher", "energy", "student")}


def export_manifest() -> dict[str, Any]:
    error = {"fp32": 4.8e-6, "fp16": 7.3e-3, "int8": 0.412}
    return {
        "schema": 1,
        "lineage": exported_lineage(),
        "opset": 18,
        "files": [
            {
                "name": name,
                "role": role,
                "format": form,
                "precision": precision,
                "sha256": sha(name),
                "size_bytes": size,
                "batch": None,
                "parity": {
                    "images": 144,
                    "max_abs": error[precision],
                    "mean_abs": error[precision] / 6,
                    "cosine": {"fp32": 1.0, "fp16": 0.999998, "int8": 0.99921}[precision],
                    "top1_agreement": 0.9931 if precision == "int8" else 1.0,
                    "smallest_flipped_margin": 0.21 if precision == "int8" else None,
                    "largest_flipped_margin": 0.21 if precision == "int8" else None,
                    "energy_max_abs": error[precision] / 2,
                    "runtime": RUNTIMES[form],
                    "executed_precision": executed(name, precision),
                },
            }
            for name, role, form, precision, size in FILES
        ],
    }


def executed(name: str, precision: str) -> str:
    if precision == "fp16":
        return "fp32"
    return "mixed:int8=9,fp32=1" if name == "student_int8.xml" else precision


def routing() -> dict[str, Any]:
    curve = [min(1.0, 1.02 - 0.045 * share / 20) for share in range(1, 21)]
    kept = {"coverage": 0.95, "kept": 342, "top1": 339 / 342}
    return {
        "wanted_top1": 0.99,
        "energy": {"threshold": -8.25, **kept, "aurc": 0.0021, "curve": curve},
        "max_softmax": {"threshold": 0.31, **kept, "aurc": 0.0026, "curve": [value - 0.002 for value in curve]},
    }


def evaluation() -> dict[str, Any]:
    reference = sum(ERRORS["student_fp32.pt2"])
    rows = []
    for name, role, form, precision, size in FILES:
        low, mid, high = ERRORS[name]
        difference = (reference - low - mid - high) / TEST_IMAGES
        half = 0.0055 + 0.6 * abs(difference)
        rows.append(
            {
                "name": name,
                "role": role,
                "format": form,
                "precision": precision,
                "runtime": RUNTIMES[form],
                "precision_executed": executed(name, precision),
                "provider": PROVIDERS[RUNTIMES[form]],
                "runtime_version": VERSIONS[RUNTIMES[form]],
                "sha256": sha(name),
                "size_bytes": size,
                "top1": 1 - (low + mid + high) / TEST_IMAGES,
                "top1_low_energy": 1 - low / GROUP_SIZES["low"],
                "top1_mid_energy": 1 - mid / GROUP_SIZES["mid"],
                "top1_high_energy": 1 - high / GROUP_SIZES["high"],
                "balanced_accuracy": 1 - (low + mid + high) / TEST_IMAGES - 0.001,
                "ece": 0.012,
                "delta_top1": difference,
                "delta_ci_low": difference - half,
                "delta_ci_high": difference + half,
                "delta_top1_high_energy": (ERRORS["student_fp32.pt2"][2] - high) / GROUP_SIZES["high"],
                "delta_groups": {group: {"value": 0.0, "low": -0.02, "high": 0.02} for group in ("low", "mid", "high")},
                "routing": routing(),
            }
        )
    return {
        "schema": 1,
        "lineage": exported_lineage(),
        "test_images": TEST_IMAGES,
        "group_sizes": dict(GROUP_SIZES),
        "shot_classes": None,
        "rows": rows,
    }


def benchmark() -> dict[str, Any]:
    rows = []
    for name, role, form, precision, _ in FILES:
        p50, slow = LATENCY[name], form == "torch"
        rows.append(
            {
                "name": name,
                "role": role,
                "precision": precision,
                "runtime": RUNTIMES[form],
                "sha256": sha(name),
                "device_name": "Example CPU",
                "samples": 750 if not slow else 540,
                "rounds": [{"median_ms": factor * p50} for factor in (0.975, 0.99, 1.0, 1.01, 1.03)],
                "error": None,
                "latency_p50_ms": p50,
                "latency_p90_ms": 1.14 * p50,
                "latency_p99_ms": None if slow else 1.52 * p50,
                "latency_ci_low_ms": 0.975 * p50,
                "latency_ci_high_ms": 1.03 * p50,
                "throughput_ips": 1000 / (1.05 * p50),
                "verdict": "noisy" if slow else "stable",
                "reasons": ["round medians differ by 14%."] if slow else [],
                "precision_executed": executed(name, precision),
                "notes": ["p99 not measured: 540 samples, 662 needed."] if slow else [],
            }
        )
    return {
        "schema": 1,
        "device": "Example CPU",
        "machine": {
            "cpu": "Example CPU @ 2.10GHz",
            "board": None,
            "cpu_flags": [f"flag{i}" for i in range(60)],
            "logical_cores": 2,
            "affinity": [0, 1],
            "memory_total_kb": 24_683_656,
            "python": "3.11.7",
            "virtual_machine": True,
            "state": {"time": 1795381664.05, "load_average": [0.31, 0.4, 0.2], "temperatures_c": None},
        },
        "settings": {
            "batch": 1,
            "threads": 0,
            "rounds": 5,
            "warmup_seconds": 0.2,
            "min_seconds": 0.5,
            "min_count": 250,
        },
        "lineage": exported_lineage(),
        "tuning": {"allowed": False, "changed": {}, "notes": []},
        "notes": [],
        "rows": rows,
    }


def device_result() -> dict[str, Any]:
    """What the stage measure leaves of a device that runs the ONNX files, ten times slower than this machine."""
    rows = []
    for name, role, form, precision, size in FILES:
        if form != "onnx":
            continue
        low, mid, high = ERRORS[name]
        p50 = 10 * LATENCY[name]
        rows.append(
            {
                "name": name,
                "role": role,
                "format": form,
                "precision": precision,
                "runtime": "onnxruntime",
                "batch": 1,
                "sha256": sha(name),
                "size_bytes": size,
                "device_name": "Example Board",
                "samples": 1500,
                "rounds": [{"median_ms": factor * p50} for factor in (0.98, 0.99, 1.0, 1.01, 1.02)],
                "error": None,
                "error_kind": None,
                "latency_p50_ms": p50,
                "latency_p90_ms": 1.1 * p50,
                "latency_p99_ms": 1.3 * p50,
                "latency_ci_low_ms": 0.98 * p50,
                "latency_ci_high_ms": 1.02 * p50,
                "throughput_ips": 1000 / p50,
                "verdict": "throttled" if role == "teacher" else "stable",
                "reasons": ["the CPU clock fell from 2400 to 1500 MHz."] if role == "teacher" else [],
                "precision_executed": executed(name, precision),
                "notes": ["energy per inference not measured: RAPL is not here; the board shows no INA sensor."],
                "accuracy": {
                    "images": 256,
                    "top1": 1 - (low + mid + high) / 256,
                    "top1_low_energy": 1 - low / 49,
                    "top1_mid_energy": 1 - mid / 156,
                    "top1_high_energy": 1 - high / 51,
                    "top1_reference": 1 - 9 / 256,
                    "delta_top1": (9 - low - mid - high) / 256,
                    "delta_ci_low": (9 - low - mid - high) / 256 - 0.01,
                    "delta_ci_high": (9 - low - mid - high) / 256 + 0.01,
                    "delta_top1_high_energy": (7 - high) / 51,
                    "parity_max_abs": 5.1e-6,
                    "parity_mean_abs": 4.0e-7,
                    "parity_top1_agreement": 1.0,
                    "energy_max_abs": 2.0e-6,
                },
                "cold": {
                    "rounds": 3,
                    "import_ms": 412.0,
                    "load_ms": 31.0,
                    "first_inference_ms": 9.7,
                    "dropped_cache": True,
                },
                "memory": {"peak_rss_kb": 81_240, "model_rss_kb": 5_120},
                "sustained": {
                    "minutes": [{"p50_ms": factor * p50, "p90_ms": None} for factor in (1.0, 1.2, 1.21, 1.2)],
                    "plateau_ms": 1.2 * p50,
                    "ended_by": "plateau",
                },
                "throughput": [{"batch": 8, "threads": 4, "images_per_second": 2500 / p50}],
                "joules_per_inference": None,
                "meter": None,
            }
        )
    return {
        "schema": 1,
        "device": "Example Board",
        "machine": {"board": "Example Board", "cpu": "Cortex-A76", "machine": "aarch64", "emulated": False},
        "settings": {"runtimes": ["onnxruntime"], "images": 256, "threads": 4},
        "lineage": exported_lineage(),
        "bundle_sha256": sha("bundle"),
        "started_at": 1795381664.05,
        "seconds": 912.0,
        "tuning": {"allowed": False, "changed": {}, "notes": []},
        "notes": [],
        "rows": rows,
    }


def device(name: str = "board", measured: dict[str, Any] | None = None, **limits: float) -> Device:
    """A measured device with the limits of its budget."""
    budget = BudgetParams(**(dict.fromkeys(BudgetParams.model_fields) | limits))
    return Device(name, device_result() if measured is None else measured, budget)


def energy_table(images: int, seed: int, split: str) -> Table:
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
    lineage = {
        "temperature": 4.0,
        "low_threshold": float(energy[order[images // 5]]),
        "high_threshold": float(energy[order[images - images // 5 - 1]]),
        "data": sha("data"),
        "teacher": sha("teacher"),
        "split": split,
    }
    if split == "test":
        lineage["energy"] = sha("energy")
    return Table(columns, lineage)


def subset_table(energy: Table) -> Table:
    chosen = np.sort(np.argsort(energy.columns["energy"], kind="stable")[-517:])
    columns = {"index": chosen, **{key: energy.columns[key][chosen] for key in ("label", "energy")}}
    return Table(columns, {"fraction": 0.4, "data": sha("data"), "energy": sha("energy")})


def learning_curves() -> dict[str, dict[str, Curve]]:
    curves = {}
    for role, epochs, best in (("teacher", 14, 0.986), ("student", 30, 0.979)):
        steps = [float(epoch) for epoch in range(epochs)]
        loss = [2.2 * float(np.exp(-epoch / (epochs / 5))) + 0.02 for epoch in range(epochs)]
        top1 = [best - 0.7 * float(np.exp(-epoch / (epochs / 7))) for epoch in range(epochs)]
        curves[role] = {"train_loss": Curve(steps, loss), "val_top1": Curve(steps, top1)}
    return curves


def build_inputs(**changes: Any) -> Inputs:
    energy = energy_table(1293, 1, "train")
    values: dict[str, Any] = {
        "data": data_card(),
        "teacher": card("teacher"),
        "student": card("student"),
        "export": export_manifest(),
        "evaluation": evaluation(),
        "benchmark": benchmark(),
        "energy": energy,
        "energy_test": energy_table(TEST_IMAGES, 2, "test"),
        "subset": subset_table(energy),
        "curves": learning_curves(),
        "energy_sha256": sha("energy"),
        "subset_sha256": sha("subset"),
        "tensorrt_unavailable": NO_TENSORRT,
        "budget": BudgetParams(**(dict.fromkeys(BudgetParams.model_fields) | {"max_top1_drop": 0.01})),
    }
    return Inputs(**(values | changes))


def summary_of(inputs: Inputs) -> tuple[dict[str, Any], Recommendation]:
    return build_summary(
        teacher=inputs.teacher,
        student=inputs.student,
        export=inputs.export,
        evaluation=inputs.evaluation,
        benchmark=inputs.benchmark,
        budget=inputs.budget,
        tensorrt_unavailable=inputs.tensorrt_unavailable,
        devices=[on_device(found, inputs.export["files"]) for found in inputs.devices],
    )


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    """Fresh inputs of the report at every call; keywords replace whole fields."""
    return build_inputs


@pytest.fixture(scope="session")
def summarise() -> Callable[[Inputs], tuple[dict[str, Any], Recommendation]]:
    """The summary of inputs, and its recommendation, without page and plots."""
    return summary_of


@pytest.fixture(scope="session")
def make_device() -> Callable[..., Device]:
    """A measured device at every call: its name, its result.json, and the limits of its budget."""
    return device


@pytest.fixture
def measured() -> dict[str, Any]:
    """A result.json, free to change."""
    return device_result()


@pytest.fixture
def inputs() -> Inputs:
    return build_inputs()


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Rows of the summary of the default inputs, free to change."""
    rows: list[dict[str, Any]] = summary_of(build_inputs())[0]["rows"]
    return rows
