"""What a benchmark measures and for how long."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.device.errors import PlanError, brief

SCHEMA = 2
_MOST = 2**63  # above it, and for what is not a number, no limit and no count means anything
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def _check_types(value: Any) -> None:
    """Refuse a field of another type than its own: a plan comes out of a file, and is used hours later.

    Raises:
        PlanError: one is; also a number that is not finite.
    """
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if not _is_a(str(field.type), found):
            raise PlanError(f"{field.name} of the plan is {brief(repr(found))}, not {field.type}; write it again.")


def _is_a(kind: str, value: Any) -> bool:
    if kind.endswith(" | None"):
        return value is None or _is_a(kind.removesuffix(" | None"), value)
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST
    return isinstance(value, tuple)


@dataclass(frozen=True)
class Variant:
    """One model file in one runtime.

    Attributes:
        name: unique within a plan; letters, digits and ``._+-``.
        runtime: name of pipeline.runtimes.NAMES.
        path: model file.
        precision: that the file claims.
        batch: images in one inference.
        device: "cpu", or an accelerator as the runtime names it.
        fixed_batch: the file takes ``batch`` images and no other number.
    """

    name: str
    runtime: str
    path: str
    precision: str
    batch: int = 1
    device: str = "cpu"
    fixed_batch: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        if not _NAME.fullmatch(self.name):
            raise PlanError(f"variant name {brief(repr(self.name))} may hold only letters, digits and ._+-; rename it.")
        if self.batch < 1:
            raise PlanError(f"variant {self.name} has batch {self.batch}; use 1 or more.")


@dataclass(frozen=True)
class Plan:
    """Variants, what is measured of each of them, and for how long.

    A round ends when it has both ``min_seconds`` and ``min_count``, or at ``max_seconds`` whatever it has; the warm-up
    likewise.

    Attributes:
        inputs: .npy file with float32 images [N, 3, H, W], preprocessed.
        threads: of one inference on a CPU; 0 leaves the runtime's own choice.
        rounds: fresh processes for each variant.
        seed: of the order of the variants within a round.
        timeout_seconds: for what a process does beside measuring: importing, loading, building an engine; and for the
            accuracy.
        expected: .npz file with what is known of the N images: logits float32 [N, K] and energy float32 [N] of the
            network, labels int64 [N], groups int8 [N] (0 low, 1 middle, 2 high energy, -1 unknown). None leaves the
            accuracy out.
        timing_images: the first so many images, which inferences cycle through while they are timed.
        cold_rounds: further processes of each variant for the cold start, with the file cache dropped where the system
            allows it.
        memory_pass: measure the peak memory, in a process that does not time.
        sustained_seconds: time limit of the measurement until a plateau, one variant after another; 0 leaves it out.
        throughput: (batch, threads) points at which images per second are measured besides.
        allow_device_tuning: set the CPU governor to "performance" meanwhile; otherwise nothing on the device changes.
    """

    variants: tuple[Variant, ...]
    inputs: str
    threads: int = 0
    rounds: int = 5
    warmup_seconds: float = 1.0
    warmup_count: int = 10
    min_seconds: float = 5.0
    min_count: int = 150
    max_seconds: float = 60.0
    seed: int = 0
    timeout_seconds: float = 900.0
    expected: str | None = None
    timing_images: int = 64
    cold_rounds: int = 0
    memory_pass: bool = False
    sustained_seconds: float = 0.0
    throughput: tuple[tuple[int, int], ...] = ()
    allow_device_tuning: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise PlanError(f"a plan needs variants with different names, but has {', '.join(names) or 'none'}.")
        positive = {"rounds": self.rounds, "min_count": self.min_count, "max_seconds": self.max_seconds}
        positive |= {"timeout_seconds": self.timeout_seconds, "timing_images": self.timing_images}
        for key, value in positive.items():
            if value <= 0:
                raise PlanError(f"{key} is {value}; use a number above 0.")
        not_negative = {"threads": self.threads, "min_seconds": self.min_seconds, "seed": self.seed}
        not_negative |= {"warmup_seconds": self.warmup_seconds, "warmup_count": self.warmup_count}
        not_negative |= {"cold_rounds": self.cold_rounds, "sustained_seconds": self.sustained_seconds}
        for key, value in not_negative.items():
            if value < 0:
                raise PlanError(f"{key} is {value}; use 0 or more.")
        if self.max_seconds < max(self.min_seconds, self.warmup_seconds):
            raise PlanError(f"max_seconds is {self.max_seconds}, below min_seconds or warmup_seconds; raise it.")
        for batch, threads in self.throughput:
            if not (_is_a("int", batch) and _is_a("int", threads)):
                raise PlanError(
                    f"the plan cannot be read (throughput has {brief(repr((batch, threads)))}); use whole numbers."
                )
            if batch < 1 or threads < 0:
                raise PlanError(f"throughput has batch {batch} with {threads} threads; use 1 or more, and 0 or more.")

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that ``to_json`` wrote.

        Raises:
            PlanError: not JSON, another schema, an unknown or missing key, or a value out of range.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            schema = values.pop("schema", None)
            if schema != SCHEMA:
                raise PlanError(
                    f"the plan has schema {brief(schema)}, but this program reads {SCHEMA}; write it again."
                )
            variants = tuple(Variant(**variant) for variant in values.pop("variants"))
            points = tuple((batch, threads) for batch, threads in values.pop("throughput", ()))
            return cls(variants=variants, throughput=points, **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan cannot be read ({brief(error)}); write it again.") from error
