"""Students that cannot be expected to meet a budget are told before they are trained."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Params, load_params, validated
from pipeline.distillation.student import NetworkSize
from pipeline.portable.documents import MeasuredRow
from pipeline.store.documents import ImageFormat, MeasuredFrom, Measurement, NetworkCard, NetworkLineage
from pipeline.store.paths import BENCHMARK, CARD, TEACHER
from stages.forecast import unlikely_students

SHIPPED = load_params(Path(__file__).parents[2] / "params.yaml")
TEACHER_HASH = "b" * 64
SIZES = {"small": NetworkSize(50_000, 1_000_000), "large": NetworkSize(200_000, 30_000_000)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def with_budget(precisions: tuple[str, ...] = ("fp32", "fp16", "int8"), **budget: Any) -> Params:
    values = SHIPPED.model_dump(exclude={"students"}) | {"students": {"student": {}}}
    values["budget"] |= budget
    values["export"]["precisions"] = list(precisions)
    return validated(Params, values, "test")


def measured_teacher(milliseconds: float, teacher: str = TEACHER_HASH) -> None:
    """An earlier run: a teacher of 10 million multiply-adds, and its latency."""
    NetworkCard(
        role="teacher",
        network="resnet20",
        num_classes=2,
        class_names=["a", "b"],
        image=ImageFormat(height=8, width=8, channels=3, resize="squash", interpolation="bilinear"),
        mean=[0.5] * 3,
        std=[0.5] * 3,
        source="trained",
        seed=0,
        epochs=1,
        precision="fp32",
        kept_epoch=0,
        val_top1=1.0,
        best_val_top1=1.0,
        best_val_epoch=0,
        parameters=300_000,
        macs=10_000_000,
        weights_sha256=TEACHER_HASH,
        lineage=NetworkLineage(data="a" * 64),
    ).write(TEACHER / CARD)
    Measurement(
        device="cpu",
        machine={},
        settings={},
        lineage=MeasuredFrom(data="a" * 64, teacher=teacher, energy="c" * 64, networks={"teacher": teacher}),
        bundle_sha256="d" * 64,
        samples_sha256="e" * 64,
        started_at=0.0,
        seconds=1.0,
        tuning={},
        notes=[],
        rows=[
            MeasuredRow(
                name="teacher_fp32.onnx",
                runtime="onnxruntime",
                precision="fp32",
                batch=1,
                device_name="cpu",
                role="teacher",
                latency_p50_ms=milliseconds,
            )
        ],
    ).write(BENCHMARK)


def test_a_student_whose_weights_alone_are_too_large_is_told() -> None:
    (sentence,) = unlikely_students(SIZES, with_budget(max_size_mb=0.1))
    assert sentence.startswith("student large cannot be within the budget of params.yaml: its 200,000 parameters take")
    assert "0.200 MB in int8" in sentence


def test_the_size_is_that_of_the_smallest_precision_that_is_exported() -> None:
    sentences = list(unlikely_students(SIZES, with_budget(("fp32",), max_size_mb=0.3)))
    assert len(sentences) == 1
    assert "0.800 MB in fp32" in sentences[0]


def test_without_limits_or_without_a_measurement_nothing_is_said() -> None:
    assert list(unlikely_students(SIZES, with_budget())) == []
    assert list(unlikely_students(SIZES, with_budget(max_latency_p50_ms=0.001))) == []


def test_the_multiply_adds_and_the_latency_of_the_measured_teacher_tell_a_student_that_is_too_slow() -> None:
    measured_teacher(2.0)
    sentences = list(unlikely_students(SIZES, with_budget(max_latency_p90_ms=1.0)))
    assert len(sentences) == 1  # 2 ms x 3 / 4 for large, 2 ms / 10 / 4 for small
    assert sentences[0].startswith("student large is not expected within the budget of params.yaml")
    assert "at 4 times its speed it takes 1.50 ms, and 1.00 are allowed" in sentences[0]


def test_the_measurement_of_another_teacher_tells_nothing() -> None:
    measured_teacher(2.0, teacher="f" * 64)
    assert list(unlikely_students(SIZES, with_budget(max_latency_p50_ms=0.001))) == []


def test_each_device_has_its_own_budget() -> None:
    device = Path(__file__).parents[2] / "targets/examples/raspberry_pi.yaml"
    path = Path("targets/pi/device.yaml")
    path.parent.mkdir(parents=True)
    text = device.read_text(encoding="utf-8").replace("max_size_mb: null", "max_size_mb: 0.01")
    path.write_text(text, encoding="utf-8")
    assert [sentence.split(":")[0] for sentence in unlikely_students(SIZES, with_budget())] == [
        "student small cannot be within the budget of pi",
        "student large cannot be within the budget of pi",
    ]
