"""Realistic inputs of the report, built by functions: digits, resnet20 to students, on a machine without TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import TEACHER, BudgetParams
from pipeline.lineage import NetworkRun, Run
from pipeline.portable.accuracy import GROUPS, Accuracy, group_accuracy, pack_correct, paired_difference
from pipeline.portable.documents import ColdStart, MeasuredRow, Memory, Minute, Round, Sustained, Throughput
from pipeline.report.build import build_report
from pipeline.report.devices import Device
from pipeline.report.inputs import Curve, Inputs
from pipeline.report.rows import Row
from pipeline.store import documents
from pipeline.store.answers import Answers, FileAnswers, SplitAnswers, spread_over
from pipeline.store.tables import EnergyLineage, SubsetLineage, Table
from tests.conftest import squashed

CLASS_NAMES = [str(digit) for digit in range(10)]
NO_TENSORRT = "tensorrt is not installed; install it with `pip install tensorrt`."
VAL_IMAGES, TEST_IMAGES, DEVICE_IMAGES = 144, 360, 256
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
VERSIONS = {"onnxruntime": "1.23.2", "openvino": "2026.4.1", "torch": "2.14.0"}
PROVIDERS = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU", "torch": "CPU"}

# of the student's files: ending, format, precision, size in bytes, median latency in ms, errors beyond the network's
FILES = [
    ("_fp32.onnx", "onnx", "fp32", 318_114, 0.412, (0, 0, 0)),
    ("_fp16.onnx", "onnx", "fp16", 163_402, 0.533, (0, 0, 0)),
    ("_int8.onnx", "onnx", "int8", 97_861, 0.298, (0, 1, 0)),
    ("_fp32.xml", "openvino", "fp32", 361_870, 0.371, (0, 0, 0)),
    ("_fp16.xml", "openvino", "fp16", 209_334, 0.374, (0, 0, 0)),
    ("_int8.xml", "openvino", "int8", 171_250, 0.262, (0, 0, 1)),
    ("_fp32.pt2", "torch", "fp32", 402_911, 1.94, (0, 0, 0)),
]
TEACHER_FILES = [("_fp32.onnx", "onnx", "fp32", 1_103_207, 1.31, (0, 0, 0))]


@dataclass(frozen=True)
class Made:
    """A made-up network.

    Attributes:
        errors: wrong answers among the test images of low, middle and high energy.
        size, latency: of its files, as factors on those of FILES.
    """

    name: str
    network: str
    parameters: int
    macs: int
    epochs: int
    val_top1: float
    errors: tuple[int, int, int]
    size: float = 1.0
    latency: float = 1.0

    @cached_property
    def files(self) -> list[tuple[str, str, str, int, float, tuple[int, ...]]]:
        """Name, format, precision, size, median latency and wrong answers in each group, of each file."""
        return [
            (
                self.name + ending,
                form,
                precision,
                round(self.size * size),
                self.latency * latency,
                tuple(a + b for a, b in zip(self.errors, more, strict=True)),
            )
            for ending, form, precision, size, latency, more in (TEACHER_FILES if self.name == TEACHER else FILES)
        ]

    @property
    def role(self) -> Any:
        return "teacher" if self.name == TEACHER else "student"


NETWORKS = {
    made.name: made
    for made in (
        Made("student", "resnet8", 78_042, 12_501_632, 30, 0.979, (0, 2, 7)),
        Made("wide", "resnet8x4", 1_214_954, 177_782_272, 60, 0.993, (0, 1, 5), 3.1, 2.2),
        Made("slim", "wrn_16_1", 175_258, 25_165_824, 30, 0.972, (0, 5, 11), 0.62, 0.55),
        Made("deep", "resnet14", 172_506, 26_738_688, 30, 0.981, (0, 2, 6), 1.4, 1.9),
        Made("mobile", "torchvision:mobilenet_v3_small", 1_528_106, 58_794_032, 90, 0.951, (1, 12, 14), 2.2, 0.8),
        Made("shuffle", "ShuffleV2", 1_263_854, 44_555_264, 30, 0.965, (0, 7, 12), 1.9, 1.1),
        Made("quarter", "resnet8", 78_042, 12_501_632, 8, 0.944, (1, 14, 16), 0.35, 0.31),
        Made("vgg", "vgg8", 3_965_028, 96_338_176, 30, 0.986, (0, 2, 6), 5.5, 1.5),
        Made(TEACHER, "resnet20", 272_474, 40_813_184, 14, 0.986, (0, 1, 4)),
    )
}
STUDENTS = [name for name in NETWORKS if name != TEACHER]


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
    for network in run.networks:
        files = [file for file in network.exported.files if file.name != name]
        network.exported = changed(network.exported, files=files)
        network.evaluation = with_rows(network.evaluation, lambda _: None, name)
    run.benchmark = with_rows(run.benchmark, lambda _: None, name)


def data_card() -> documents.DataCard:
    return documents.DataCard(
        name="digits",
        storage="packed",
        class_names=list(CLASS_NAMES),
        image=squashed(32),
        mean=[0.3053, 0.3053, 0.3053],
        std=[0.3552, 0.3552, 0.3552],
        counts=documents.SplitCounts(train=1293, val=VAL_IMAGES, test=TEST_IMAGES),
        train_class_counts=[130, 130, 130, 129, 129, 129, 129, 129, 129, 129],
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, 1,797 scans of 8x8 pixels",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        fingerprint=sha("data"),
    )


def card(name: str) -> documents.NetworkCard:
    made, teacher = NETWORKS[name], name == TEACHER
    made_from = {} if teacher else {name: sha(name) for name in ("teacher", "energy", "subset")}
    distill = {
        "network": made.network,
        "loss": {"name": "kd", "ce_weight": 0.1, "kd_weight": 0.9},
        "temperatures": {"mode": "groups", "low_energy": 6.0, "mid": 4.0, "high_energy": 2.0},
        "assignment": "sample",
        "training": {"epochs": made.epochs, "batch_size": 32},
    }
    return documents.NetworkCard(
        role=made.role,
        network=made.network,
        num_classes=10,
        class_names=list(CLASS_NAMES),
        image=squashed(32),
        mean=[0.3053, 0.3053, 0.3053],
        std=[0.3552, 0.3552, 0.3552],
        source="trained",
        seed=0,
        epochs=made.epochs,
        val_top1=made.val_top1,
        best_val_top1=made.val_top1,
        best_val_epoch=made.epochs - 1,
        kept_epoch=made.epochs - 1,
        precision="fp32",
        parameters=made.parameters,
        macs=made.macs,
        weights_sha256=sha(made.name),
        lineage=documents.NetworkLineage(data=sha("data"), **made_from),
        distill=None if teacher else distill,
        heda=None if teacher else {"fraction": 0.4, "mix": "cutmix", "kd_weight": 0.9, "mixed_label_weight": 0.0},
    )


def soft_label_card() -> documents.SoftLabelCard:
    return documents.SoftLabelCard(
        data=sha("data"),
        teacher=sha(TEACHER),
        teachers=[],
        subset=None,
        augmentation={"horizontal_flip": False},
        seed=0,
        mixed=True,
        views=0,
        extra_views=0,
        kept=10,
        energy_temperature=4.0,
    )


def made_from(name: str) -> documents.MadeFrom:
    return documents.MadeFrom(**{part: sha(part) for part in ("data", "teacher", "energy")}, network=sha(name))


def executed(name: str, precision: str) -> str:
    if precision == "fp16":
        return "fp32"
    return "mixed:int8=9,fp32=1" if name.endswith("_int8.xml") else precision


def export_manifest(name: str = "student") -> documents.ExportManifest:
    made = NETWORKS[name]
    error = {"fp32": 4.8e-6, "fp16": 7.3e-3, "int8": 0.412}
    files = [
        documents.ExportedFile(
            name=file,
            role=made.role,
            student=None if made.role == "teacher" else name,
            format=form,
            precision=precision,
            sha256=sha(file),
            size_bytes=size,
            batch=None,
            fp32_layers=["/conv1/Conv"] if precision == "int8" else [],
            parity=documents.FileParity(
                images=VAL_IMAGES,
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
                executed_precision=executed(file, precision),
            ),
        )
        for file, form, precision, size, _, _ in made.files
    ]
    return documents.ExportManifest(lineage=made_from(name), opset=18, files=files)


def answers_with(name: str, errors: tuple[int, ...], groups: NDArray[np.int8]) -> SplitAnswers:
    """Answers of which so many are wrong in each group; networks share most of their errors, files nearly all."""
    generator, shared = np.random.default_rng(list(name.encode())), np.random.default_rng(5)
    hardness = shared.random(len(groups)) + 0.4 * generator.random(len(groups))
    correct = np.ones(len(groups), dtype=bool)
    for wrong, code in zip(errors, GROUPS.values(), strict=True):
        members = np.flatnonzero(groups == code)
        correct[members[np.argsort(-hardness[members])[:wrong]]] = False
    uncertainty = (hardness / 2).astype(np.float32)
    return SplitAnswers(correct, 12 * uncertainty - 14, uncertainty)


def answers(name: str, groups: NDArray[np.int8]) -> Answers:
    """Args: groups: of the test images."""
    made = NETWORKS[name]
    of_val = np.ones(VAL_IMAGES, dtype=np.int8)

    def both(errors: tuple[int, ...]) -> FileAnswers:
        return FileAnswers(
            answers_with(name, (0, round((1 - made.val_top1) * VAL_IMAGES), 0), of_val),
            answers_with(name, errors, groups),
        )

    files = {(file, RUNTIMES[form]): both(errors) for file, form, _, _, _, errors in made.files}
    return Answers(both(made.errors), files)


def accuracy(
    correct: NDArray[np.bool_], reference: NDArray[np.bool_], groups: NDArray[np.int8], **parity: float | None
) -> Accuracy:
    """Of a file beside its torch network."""
    parts: dict[str, float | None] = {}
    for group, top1 in group_accuracy(correct, groups).items():
        members = groups == GROUPS[group]
        difference = paired_difference(correct[members], reference[members])
        parts |= {
            f"top1_{group}_energy": top1,
            f"delta_top1_{group}_energy": difference.value,
            f"delta_{group}_energy_ci_low": difference.low,
            f"delta_{group}_energy_ci_high": difference.high,
        }
    difference = paired_difference(correct, reference)
    return Accuracy(
        images=len(correct),
        top1=float(correct.mean()),
        correct=pack_correct(correct),
        **parts,
        delta_top1=difference.value,
        delta_ci_low=difference.low,
        delta_ci_high=difference.high,
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


def evaluation(name: str, found: Answers, groups: NDArray[np.int8]) -> documents.Evaluation:
    rows = []
    for file, form, precision, *_ in NETWORKS[name].files:
        correct = found.files[(file, RUNTIMES[form])].test.correct
        rows.append(
            documents.EvaluatedRow(
                name=file,
                runtime=RUNTIMES[form],
                sha256=sha(file),
                precision_executed=executed(file, precision),
                precision_mismatch=None,
                provider=PROVIDERS[RUNTIMES[form]],
                runtime_version=VERSIONS[RUNTIMES[form]],
                accuracy=accuracy(correct, found.network.test.correct, groups),
                balanced_accuracy=float(correct.mean()) - 0.001,
                shots=None,
                ece=0.012,
                routing=routing(),
            )
        )
    return documents.Evaluation(
        lineage=made_from(name),
        answers_sha256=sha(f"answers of {name}"),
        test_images=TEST_IMAGES,
        group_sizes={group: int((groups == code).sum()) for group, code in GROUPS.items()},
        shot_classes=None,
        rows=rows,
    )


def rounds(*medians: float) -> list[Round]:
    of_all = {"samples": 150, "drift": 0.0, "started_at": 1795381664.0, "cut_short": False, "warmup_count": 50}
    of_all |= {"import_ms": 400.0, "load_ms": 30.0, "first_inference_ms": 9.0, "peak_rss_kb": None}
    return [
        Round(median_ms=each, mean_ms=each, min_ms=each, sensors_before={}, sensors_after={}, **of_all)
        for each in medians
    ]


def measurement(
    device: str, machine: dict[str, Any], settings: dict[str, Any], rows: list[MeasuredRow], *names: str
) -> documents.Measurement:
    """Of the files of the networks of these names."""
    return documents.Measurement(
        device=device,
        machine=machine,
        settings=settings,
        lineage=documents.MeasuredFrom(
            **{part: sha(part) for part in ("data", "teacher", "energy")}, networks={name: sha(name) for name in names}
        ),
        bundle_sha256=sha("bundle"),
        samples_sha256=sha("samples"),
        started_at=1795381664.05,
        seconds=912.0,
        tuning={"allowed": False, "changed": {}, "notes": []},
        notes=[],
        rows=rows,
    )


def files_of(*names: str) -> list[tuple[Any, ...]]:
    """Role of the network, and what Made.files lists, of each file."""
    return [(NETWORKS[name].role, *file) for name in names for file in NETWORKS[name].files]


def benchmark(*names: str) -> documents.Measurement:
    """Of the files of these networks; by default, of the student and the teacher."""
    names = names or ("student", TEACHER)
    rows = []
    for role, name, form, precision, size, p50, _ in files_of(*names):
        slow = form == "torch"
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
    return measurement("Example CPU", machine, settings, rows, *names)


def minute(p50: float) -> Minute:
    unknown = dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "temperature_c", "clock_khz", "throttle_count"))
    unknown |= dict.fromkeys(("raspberry_throttled", "nvidia"))
    return Minute(samples=900, seconds=60.0, whole=True, p50_ms=p50, mean_ms=p50, max_ms=2 * p50, notes=[], **unknown)


def device_result(*names: str) -> documents.Measurement:
    """The result of the stage measure for a device that runs the ONNX files, ten times slower than this machine."""
    names = names or ("student", TEACHER)
    index = spread_over(TEST_IMAGES, DEVICE_IMAGES)
    groups = energy_table(TEST_IMAGES, 2, "test").columns["group"]
    found_answers = {name: answers(name, groups) for name in names}
    rows = []
    for role, name, form, precision, size, here, _ in files_of(*names):
        if form != "onnx":
            continue
        p50, teacher = 10 * here, role == "teacher"
        of_network = found_answers[name.rpartition("_")[0]]
        correct, reference = (
            each.test.correct[index] for each in (of_network.files[(name, "onnxruntime")], of_network.network)
        )
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
                accuracy=accuracy(correct, reference, groups[index], **found),
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
    settings = {"runtimes": ["onnxruntime"], "images": DEVICE_IMAGES, "threads": 4}
    return measurement("Example Board", machine, settings, rows, *names)


def device(name: str = "board", measured: documents.Measurement | None = None, **limits: Any) -> Device:
    """A measured device with the limits of its budget."""
    return Device(name, measured or device_result(), budget(**limits))


def budget(**limits: Any) -> BudgetParams:
    choice = {"choose": "smallest", "cascades": False, "reference": "best_student"}
    return BudgetParams(**(dict.fromkeys(BudgetParams.model_fields) | choice | limits))


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
        "max_logit": -energy,
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


def learning_curves(*names: str) -> dict[str, dict[str, Curve]]:
    curves = {}
    for name in names:
        epochs, best = NETWORKS[name].epochs, NETWORKS[name].val_top1
        steps = [float(epoch) for epoch in range(epochs)]
        loss = [2.2 * float(np.exp(-epoch / (epochs / 5))) + 1.05 - best for epoch in range(epochs)]
        top1 = [best - 0.7 * float(np.exp(-epoch / (epochs / 7))) for epoch in range(epochs)]
        curves[name] = {"train_loss": Curve(steps, loss), "val_top1": Curve(steps, top1)}
    return curves


def fill(network: NetworkRun, groups: NDArray[np.int8]) -> None:
    network.card, network.exported = card(network.name), export_manifest(network.name)
    network.answers = answers(network.name, groups)
    network.evaluation = evaluation(network.name, network.answers, groups)


def build_inputs(*students: str, **changes: Any) -> Inputs:
    """Fresh inputs of a run with these students, by default one; keywords replace whole fields."""
    students = students or ("student",)
    run = Run(students=students)
    # a cached property that has its value reads no file
    run.data = data_card()
    run.energy, run.energy_test = energy_table(1293, 1, "train"), energy_table(TEST_IMAGES, 2, "test")
    run.subset = subset_table(run.energy)
    run.energy_sha256, run.subset_sha256 = sha("energy"), sha("subset")
    run.soft_labels = soft_label_card()
    for network in run.networks:
        fill(network, run.energy_test.columns["group"])
    run.benchmark = benchmark(*students, TEACHER)
    values: dict[str, Any] = {
        "run": run,
        "budget": budget(max_top1_drop=0.01),
        "tensorrt_unavailable": NO_TENSORRT,
        "curves": learning_curves(*students, TEACHER),
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
    return list(build_report(build_inputs()).rows)
