"""The plan of a benchmark: its variants, and how long each is measured. A PlanError names the wrong field."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.device.errors import PlanError
from pipeline.portable.text import brief

SCHEMA = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_MAX_COOLING_SECONDS = 300.0
_MAX_NUMBER = 2**63  # excludes infinities and NaN too
_MAX_BATCH = 65536  # images
_TYPES: dict[str, Any] = {"str": str, "str | None": (str, type(None)), "bool": bool, "int": int, "float": (int, float)}
_ABOVE_ZERO = ("rounds", "min_count", "max_seconds", "timeout_seconds", "timing_images")
_NOT_NEGATIVE = ("threads", "min_seconds", "seed", "warmup_seconds", "warmup_count", "cold_rounds", "sustained_seconds")


def _check_types(value: Any) -> None:
    """Raise PlanError for a field of the wrong type. A plan comes from a file, and some fields are used hours later."""
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if not _has_type(str(field.type), content):
            raise PlanError(f"{field.name} of the plan is {brief(repr(content))}, not {field.type}; write it again.")


def _has_type(kind: str, value: Any) -> bool:
    if not isinstance(value, _TYPES.get(kind, tuple)) or (isinstance(value, bool) and kind != "bool"):
        return False
    return not isinstance(value, (int, float)) or abs(value) < _MAX_NUMBER


@dataclass(frozen=True)
class Variant:
    """One model file in one runtime, with the images and answers of its network.

    Attributes:
        name: unique within a plan; letters, digits and ``._+-``.
        runtime: one of pipeline.runtimes.NAMES.
        path: model file.
        precision: precision that the file is made for.
        inputs: .npy file with float32 images [N, 3, H, W], preprocessed for the network of the file.
        expected: .npz file of a :class:`pipeline.portable.accuracy.Expected` for the N images; None skips accuracy.
        batch: images in one inference.
        device: "cpu", or the runtime's name of an accelerator.
        fixed_batch: true if the file accepts only batches of ``batch`` images.
    """

    name: str
    runtime: str
    path: str
    precision: str
    inputs: str
    expected: str | None = None
    batch: int = 1
    device: str = "cpu"
    fixed_batch: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        for key, value in (("name", self.name), ("runtime", self.runtime), ("precision", self.precision)):
            if not _NAME.fullmatch(value):
                raise PlanError(
                    f"variant {key} {brief(repr(value))} may hold only letters, digits and ._+-; rename it."
                )
        if not 1 <= self.batch <= _MAX_BATCH:
            raise PlanError(f"variant {self.name} has batch {self.batch}; use 1 to {_MAX_BATCH}.")

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu" or self.runtime in ("tensorrt", "tensorrt_rtx")

    def takes(self, batch: int) -> bool:
        """Return true if the file can run with this batch size."""
        return not self.fixed_batch or batch == self.batch

    def map_paths(self, change: Callable[[str], str]) -> Variant:
        """Return the variant with every path replaced by ``change(path)``."""
        expected = None if self.expected is None else change(self.expected)
        return dataclasses.replace(self, path=change(self.path), inputs=change(self.inputs), expected=expected)


@dataclass(frozen=True)
class Plan:
    """Variants of a benchmark, with the measurements and their durations.

    A round ends when both ``min_seconds`` and ``min_count`` are reached, or at ``max_seconds``. The warm-up ends in the
    same way at its own minimum.

    Attributes:
        threads: CPU threads of one inference; 0 means the default of the runtime.
        rounds: number of rounds; each round is a fresh process for each variant.
        seed: random seed for the order of the variants within a round.
        timeout_seconds: time limit of a process for import, load, engine build and accuracy.
        timing_images: number of images of a variant, from the first, that timed inferences cycle through.
        cold_rounds: processes of each variant for the cold start. The file cache is dropped if the system allows it.
        memory_pass: measure peak memory, in a process that does not measure latency.
        sustained_seconds: time limit of sustained load for each variant; 0 skips it.
        throughput: (batch, threads) points of the throughput measurement.
        allow_device_tuning: set the CPU governor to "performance" during the benchmark; else no setting is changed.
    """

    variants: tuple[Variant, ...]
    threads: int = 0
    rounds: int = 5
    warmup_seconds: float = 1.0
    warmup_count: int = 10
    min_seconds: float = 5.0
    min_count: int = 150
    max_seconds: float = 60.0
    seed: int = 0
    timeout_seconds: float = 900.0
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
        for key in (*_ABOVE_ZERO, *_NOT_NEGATIVE):
            value = getattr(self, key)
            if value < 0 or (value == 0 and key in _ABOVE_ZERO):
                raise PlanError(f"{key} is {value}; use {'a number above 0' if key in _ABOVE_ZERO else '0 or more'}.")
        if self.max_seconds < max(self.min_seconds, self.warmup_seconds):
            raise PlanError(f"max_seconds is {self.max_seconds}, below min_seconds or warmup_seconds; raise it.")
        for batch, threads in self.throughput:
            if not (_has_type("int", batch) and _has_type("int", threads)):
                point = brief(repr((batch, threads)))
                raise PlanError(f"the plan cannot be read (throughput has {point}); use whole numbers.")
            if not 1 <= batch <= _MAX_BATCH or threads < 0:
                raise PlanError(f"throughput has batch {batch} and threads {threads}; use batch >= 1 and threads >= 0.")

    @property
    def cool_limit_seconds(self) -> float:
        """Time limit for cooling before sustained load, at most the duration of the load itself."""
        return min(_MAX_COOLING_SECONDS, self.sustained_seconds)

    def map_paths(self, change: Callable[[str], str]) -> Plan:
        """Return the plan with every path of its variants replaced by ``change(path)``."""
        return dataclasses.replace(self, variants=tuple(variant.map_paths(change) for variant in self.variants))

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan written by ``to_json``."""
        try:
            values: dict[str, Any] = json.loads(text)
            if (schema := values.pop("schema", None)) != SCHEMA:
                schemas = f"has schema {brief(schema)}, but this program reads {SCHEMA}"
                raise PlanError(f"the plan {schemas}; write it again.")
            variants = tuple(Variant(**variant) for variant in values.pop("variants"))
            points = tuple((batch, threads) for batch, threads in values.pop("throughput", ()))
            return cls(variants=variants, throughput=points, **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan cannot be read ({brief(error)}); write it again.") from error
