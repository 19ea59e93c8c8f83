"""Students that cannot be expected to meet a budget, told before they are trained."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import BudgetParams, Params, Precision
from pipeline.distillation.student import NetworkSize
from pipeline.errors import DataError
from pipeline.report.formatting import milliseconds, ratio, significant
from pipeline.store.documents import Measurement, NetworkCard
from pipeline.store.paths import BENCHMARK, CARD, PARAMS, TARGETS, TEACHER
from pipeline.targets import device_files, load_target

_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}  # of a weight
# at most so many times the multiply-adds per second of the teacher in fp32: int8 instructions do four in place of one
_SPEED = {"fp32": 1.0, "fp16": 2.0, "int8": 4.0}


@dataclass(frozen=True)
class _Device:
    """A budget, and what an earlier run measured of the teacher where it holds; None: nothing."""

    name: str
    budget: BudgetParams
    teacher_ms: float | None


def unlikely_students(sizes: Mapping[str, NetworkSize], params: Params) -> Iterator[str]:
    """One sentence for each student, device and limit that cannot be expected to be met.

    The size of a file is at least that of its weights. A latency is expected from the multiply-adds, if the teacher was
    measured on the device by an earlier run.
    """
    teacher = _known_teacher()
    for device in _devices(params.budget, teacher):
        for name, size in sizes.items():
            yield from _too_large(name, size, device, params.export.precisions)
            if teacher is not None and device.teacher_ms is not None:
                yield from _too_slow(name, size.macs / teacher.macs, device, params.export.precisions)


def _too_large(name: str, size: NetworkSize, device: _Device, precisions: list[Precision]) -> Iterator[str]:
    smallest = min(precisions, key=lambda precision: _BYTES[precision])
    megabytes, limit = size.parameters * _BYTES[smallest] / 1e6, device.budget.max_size_mb
    if limit is not None and megabytes > limit:
        yield (
            f"student {name} cannot be within the budget of {device.name}: its {size.parameters:,} parameters take "
            f"{significant(megabytes)} MB in {smallest}, and max_size_mb is {significant(limit)}; choose a smaller "
            "network"
        )


def _too_slow(name: str, work: float, device: _Device, precisions: list[Precision]) -> Iterator[str]:
    budget, speed = device.budget, max(_SPEED[precision] for precision in precisions)
    limits = (budget.max_latency_p50_ms, budget.max_latency_p90_ms, budget.max_latency_p99_ms)
    limit = min((limit for limit in limits if limit is not None), default=None)
    expected = (device.teacher_ms or 0.0) * work / speed
    if limit is not None and expected > limit:
        yield (
            f"student {name} is not expected within the budget of {device.name}: it has {ratio(work)} the "
            f"multiply-adds of the teacher, which takes {milliseconds(device.teacher_ms)} ms there, so even at "
            f"{speed:g} times its speed it takes {milliseconds(expected)} ms, and {milliseconds(limit)} are allowed; "
            "choose a smaller network"
        )


def _known_teacher() -> NetworkCard | None:
    """The teacher of an earlier run; None if there is none, or one of another version."""
    try:
        return NetworkCard.read(TEACHER / CARD)
    except DataError:
        return None


def _devices(budget: BudgetParams, teacher: NetworkCard | None) -> Iterator[_Device]:
    yield _Device(str(PARAMS), budget, _teacher_ms(BENCHMARK, teacher))
    for path in sorted(TARGETS.glob("*/device.yaml")):
        name = path.parent.name
        yield _Device(name, load_target(path).budget, _teacher_ms(device_files(name)[1], teacher))


def _teacher_ms(path: Path, teacher: NetworkCard | None) -> float | None:
    """Median latency of this teacher in its fastest runtime, milliseconds; None if it was not measured."""
    try:
        measured = Measurement.read(path)
    except DataError:
        return None
    if teacher is None or measured.lineage.teacher != teacher.weights_sha256:
        return None
    known = (row.latency_p50_ms for row in measured.rows if row.role == "teacher" and row.precision == "fp32")
    return min((latency for latency in known if latency is not None), default=None)
