"""What the report reads: cards, the manifest, the accuracies and latencies of this machine, and curves."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import HASH, Json, as_json, class_names, plain_parquet
from bench.fuzz.readers.energy import energy_columns
from bench.fuzz.readers.manifest import file_entry, manifest_of
from bench.fuzz.readers.network import card_of
from bench.fuzz.readers.result import DOCUMENT
from pipeline.config import BudgetParams
from pipeline.data.store import CARD as DATA_CARD
from pipeline.report import build_report, build_summary, read_inputs
from pipeline.store.documents import CARD
from pipeline.store.paths import (
    BENCHMARK,
    CURVES_LINEAGE,
    DATA,
    ENERGY,
    ENERGY_TEST,
    EVALUATION,
    EXPORT_MANIFEST,
    STUDENT,
    STUDENT_CURVES,
    SUBSET,
    TARGET_INDEX,
    TEACHER,
)

BUDGET = BudgetParams(**dict.fromkeys(BudgetParams.model_fields))
CURVE = STUDENT_CURVES / "plots/metrics/val_top1.tsv"
# those that are changed, the first most often
CHANGED = (
    EVALUATION,
    BENCHMARK,
    EXPORT_MANIFEST,
    STUDENT / CARD,
    TEACHER / CARD,
    STUDENT_CURVES / CURVES_LINEAGE,
    CURVE,
)
IMAGES = 40
_PAGES = 40  # the page's plots take a second, so one case in so many makes it


def _data_card() -> Json:
    return {
        "schema": 1,
        "name": "digits",
        "storage": "packed",
        "class_names": class_names(),
        "image_size": 8,
        "mean": [0.3] * 3,
        "std": [0.2] * 3,
        "counts": {"train": IMAGES, "val": 6, "test": IMAGES},
        "train_class_counts": [14, 13, 13],
        "source": "drawn",
        "licence": "CC0",
        "fingerprint": HASH,
    }


def _evaluation(files: list[Json]) -> Json:
    router = {"threshold": -9.5, "coverage": 0.9, "kept": 36, "top1": 0.97, "aurc": 0.01, "curve": [1.0, 0.99, 0.95]}
    top1 = {f"top1_{name}_energy": 0.9 for name in ("low", "mid", "high")}
    shots = {f"top1_{name}_shot": 0.9 for name in ("many", "medium", "few")}
    interval = {"value": 0.0, "low": -0.1, "high": 0.1}
    rows = [
        {
            **{key: file[key] for key in ("name", "role", "format", "precision", "sha256", "size_bytes")},
            "runtime": "onnxruntime",
            "precision_executed": "fp32",
            "precision_mismatch": None,
            "provider": "CPUExecutionProvider",
            "runtime_version": "1.23.2",
            "top1": 0.9,
            **top1,
            "balanced_accuracy": 0.9,
            **shots,
            "ece": 0.01,
            "delta_top1": 0.0,
            "delta_ci_low": -0.1,
            "delta_ci_high": 0.1,
            "delta_top1_high_energy": 0.0,
            "delta_groups": {"low": interval, "mid": interval, "high": interval},
            "routing": {"wanted_top1": 0.99, "energy": router, "max_softmax": router},
        }
        for file in files
    ]
    return {
        "schema": 1,
        "test_images": IMAGES,
        "group_sizes": {"low": 10, "mid": 20, "high": 10},
        "shot_classes": {"many": 1, "medium": 1, "few": 1},
        "rows": rows,
    }


def _report_seeds(scratch: Path) -> dict[Path, Any]:
    """What each file holds: bytes, or what is written as JSON; all of one run."""
    made = {"parameters": 1000, "macs": 10_000}
    sha = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("teacher", "student")}
    teacher = card_of("teacher") | made | {"weights_sha256": sha["teacher"]}
    of_teacher = {"data": HASH, "teacher": sha["teacher"]}
    thresholds = {"temperature": 4.0, "low_threshold": -11.0, "high_threshold": -9.0}
    columns = energy_columns(IMAGES)
    energy = plain_parquet(columns, as_json({**of_teacher, **thresholds, "split": "train"}))
    of_energy = of_teacher | {"energy": hashlib.sha256(energy).hexdigest()}
    energy_test = plain_parquet(columns, as_json({**of_energy, **thresholds, "split": "test"}))
    chosen = {name: columns[name][20:] for name in ("index", "label", "energy")}
    subset = plain_parquet(chosen, as_json({"fraction": 0.5, "subset": "high_energy", **of_energy}))
    taught = of_energy | {"subset": hashlib.sha256(subset).hexdigest()}
    student = card_of("student") | made | {"weights_sha256": sha["student"], "lineage": taught}
    document = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    lineage = of_energy | {"student": sha["student"]}
    files = [file_entry(row["name"], row["sha256"], row["role"]) for row in document["rows"]]
    seeds = {
        EVALUATION: _evaluation(files) | {"lineage": lineage},
        BENCHMARK: document | {"lineage": lineage},
        EXPORT_MANIFEST: manifest_of(files) | {"lineage": lineage},
        STUDENT / CARD: student,
        TEACHER / CARD: teacher,
        STUDENT_CURVES / CURVES_LINEAGE: {"lineage": {"student": sha["student"]}},
        CURVE: b"step\tval_top1\n0\t0.5\n1\t0.75\n",
        DATA / DATA_CARD: _data_card(),
        ENERGY: energy,
        ENERGY_TEST: energy_test,
        SUBSET: subset,
        TARGET_INDEX: {},
    }
    _write(scratch, seeds)
    build_report(read_inputs(scratch, BUDGET, None))
    return seeds


def _write(folder: Path, files: dict[Path, Any]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else as_json(content))


def _write_report(rng: random.Random, seeds: dict[Path, Any], folder: Path) -> None:
    path = CHANGED[min(rng.randrange(len(CHANGED)), rng.randrange(len(CHANGED)))]
    content = seeds[path]
    if isinstance(content, bytes):
        content = mutate_bytes(content, rng)
    elif "rows" in content and rng.randrange(2):  # most of the bytes, and few of the keys
        content = content | {"rows": mutate_value(content["rows"], rng)}
    else:
        content = mutate_value(content, rng)
    if not isinstance(content, bytes) and rng.randrange(8) == 0:
        content = mutate_bytes(as_json(content), rng)
    if path != BENCHMARK:  # a plot that is the slowest part of what is read
        bare = [row | {"sustained": None} for row in seeds[BENCHMARK]["rows"]]
        seeds = seeds | {BENCHMARK: seeds[BENCHMARK] | {"rows": bare}}
    _write(folder, seeds | {path: content})
    if rng.randrange(_PAGES) == 0:
        (folder / "page").touch()


def _read_report(folder: Path, seeds: Any) -> None:
    inputs = read_inputs(folder / "in", BUDGET, None)
    if (folder / "in/page").exists():
        report = build_report(inputs)
        report.html.encode()
        summary = report.summary
    else:
        summary, _ = build_summary(
            teacher=inputs.teacher,
            student=inputs.student,
            export=inputs.export,
            evaluation=inputs.evaluation,
            benchmark=inputs.benchmark,
            budget=BUDGET,
            tensorrt_unavailable=None,
        )
    json.dumps(summary, allow_nan=False, ensure_ascii=False).encode()  # as files are written


TARGET = Target(
    "report", "cards, manifest, evaluation.json, benchmark.json, curves", _report_seeds, _write_report, _read_report
)
