"""What the workers of a benchmark gave."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]


@dataclass
class Collected:
    """What the workers of one variant gave.

    Attributes:
        results: by pass, in the order in which they ran.
        reasons: by pass, why it gave nothing, in one sentence.
        error: why accuracy or later rounds are missing.
        notes: about the circumstances.
    """

    results: dict[str, list[Json]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    error_kind: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> list[Json]:
        return self.results["round"]


def samples_ns(result: Json) -> NDArray[np.int64]:
    """Nanoseconds [M] of a worker's result, in time order."""
    return np.asarray(result["samples_ns"], dtype=np.int64)
