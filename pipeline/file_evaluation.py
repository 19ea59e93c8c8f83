"""Accuracy of one exported file in one runtime, beside the torch student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.candidates import Candidate
from pipeline.data.loader import Images
from pipeline.energy import HIGH
from pipeline.evaluation import (
    balanced_accuracy,
    expected_calibration_error,
    group_accuracy,
    paired_difference,
    shot_accuracy,
    top1_correct,
)


@dataclass(frozen=True)
class EvaluationSplit:
    """What every file is measured on.

    Attributes:
        images: N of them, on the CPU.
        groups: energy groups, int8 [N].
        student_correct: which images the torch student gets right, bool [N].
        shots: many-, medium- and few-shot classes, name -> bool [K]; None unless the training split is long-tailed.
    """

    images: Images
    groups: NDArray[np.int8]
    student_correct: NDArray[np.bool_]
    shots: dict[str, NDArray[np.bool_]] | None


def evaluate_file(candidate: Candidate, test: EvaluationSplit, batch_size: int) -> dict[str, Any]:
    """One row of reports/evaluation.json: what was run, what was executed, and how accurate it is.

    Raises:
        RuntimesError: the runtime cannot load or run the file.
    """
    file = candidate.file
    runtime = runtimes.load(candidate.runtime, candidate.path, precision=file["precision"])
    logits = np.concatenate([runtime.run(batch.images.numpy()) for batch in test.images.batches(batch_size)])
    executed = runtime.executed()
    labels = test.images.labels.numpy()
    correct = top1_correct(logits, labels)
    groups = group_accuracy(correct, test.groups)
    difference = paired_difference(correct, test.student_correct)
    hard = test.groups == HIGH
    return {
        **{key: file[key] for key in ("name", "role", "format", "precision", "sha256", "size_bytes")},
        "runtime": candidate.runtime,
        "precision_executed": executed.precision,
        "precision_mismatch": runtimes.check_executed(file["precision"], executed),
        "provider": executed.provider,
        "runtime_version": executed.version,
        "top1": float(correct.mean()),
        **{f"top1_{name}_energy": value for name, value in groups.items()},
        "balanced_accuracy": balanced_accuracy(correct, labels),
        **({} if test.shots is None else shot_accuracy(correct, labels, test.shots)),
        "ece": expected_calibration_error(logits, labels),
        "delta_top1": difference.value,
        "delta_ci_low": difference.low,
        "delta_ci_high": difference.high,
        "delta_top1_high_energy": (
            paired_difference(correct[hard], test.student_correct[hard]).value if hard.any() else None
        ),
    }
