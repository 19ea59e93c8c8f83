"""What the report takes for granted of evaluation.json, which the stage evaluate wrote."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.report.device_result import Difference, Text, Word
from pipeline.store.documents import Count, Share


class _Interval(BaseModel):
    low: Difference
    high: Difference


class _Groups(BaseModel):
    low: Any
    mid: Any
    high: _Interval | None


class _Router(BaseModel):
    threshold: float | None
    coverage: Share
    kept: Count
    top1: Share | None
    aurc: Annotated[float, Field(ge=0)]
    curve: Annotated[list[Share], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _of_some_images(self) -> Self:
        if (self.top1 is None) != (self.kept == 0):
            raise ValueError("top1 is of the kept images, and there is none without them")
        return self


class _Routing(BaseModel):
    wanted_top1: Share
    energy: _Router
    max_softmax: _Router


class _Row(BaseModel):
    """One file in one runtime."""

    name: Word
    runtime: Word
    sha256: Text
    precision_executed: Text | None
    provider: Text
    runtime_version: Text
    top1: Share
    top1_low_energy: Share | None
    top1_mid_energy: Share | None
    top1_high_energy: Share | None
    delta_top1: Difference | None
    delta_ci_low: Difference | None
    delta_ci_high: Difference | None
    delta_top1_high_energy: Difference | None
    balanced_accuracy: Share | None = None
    top1_many_shot: Share | None = None
    top1_medium_shot: Share | None = None
    top1_few_shot: Share | None = None
    delta_groups: _Groups
    routing: _Routing


class _GroupSizes(BaseModel):
    low: Count
    mid: Count
    high: Count


class _ShotClasses(BaseModel):
    model_config = ConfigDict(extra="forbid")

    many: Count
    medium: Count
    few: Count


class Evaluation(BaseModel):
    """The whole of evaluation.json but its schema."""

    lineage: dict[str, str]
    test_images: Annotated[int, Field(ge=1, le=10**12)]
    group_sizes: _GroupSizes
    shot_classes: _ShotClasses | None
    rows: list[_Row]
