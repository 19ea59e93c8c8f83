"""Accuracy of one exported file in one runtime, beside the torch student."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.config import EvaluateParams
from pipeline.data.loader import Images
from pipeline.energy.groups import GROUP_NAMES
from pipeline.evaluation.accuracy import (
    balanced_accuracy,
    expected_calibration_error,
    group_accuracy,
    paired_difference,
    shot_accuracy,
    top1_correct,
)
from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.routing import route, softmax_uncertainty


@dataclass(frozen=True)
class EvaluationSplit:
    """What every file is measured on.

    Attributes:
        images: N of them, on the CPU.
        validation: other images, on the CPU, that thresholds are set on.
        groups: energy groups, int8 [N].
        student_correct: which images the torch student gets right, bool [N].
        shots: many-, medium- and few-shot classes, name -> bool [K]; None unless the training split is long-tailed.
    """

    images: Images
    validation: Images
    groups: NDArray[np.int8]
    student_correct: NDArray[np.bool_]
    shots: dict[str, NDArray[np.bool_]] | None


def evaluate_file(candidate: Candidate, test: EvaluationSplit, params: EvaluateParams) -> dict[str, Any]:
    """One row of reports/evaluation.json: what was run, what was executed, how accurate it is and knows itself to be.

    Raises:
        RuntimesError: the runtime cannot load or run the file.
    """
    file = candidate.file
    runtime = runtimes.load(candidate.runtime, candidate.path, precision=file["precision"])
    size = file["batch"] or params.batch_size
    (logits, energy), (val_logits, val_energy) = (
        runtimes.joined(
            runtimes.run_padded(runtime, batch.images.numpy(), file["batch"]) for batch in images.batches(size)
        )
        for images in (test.images, test.validation)
    )
    assert energy is not None and val_energy is not None  # noqa: S101  the export stage refuses a file without
    executed = runtime.executed()
    labels = test.images.labels.numpy()
    correct = top1_correct(logits, labels)
    groups = group_accuracy(correct, test.groups)
    difference = paired_difference(correct, test.student_correct)
    group_differences = {
        name: paired_difference(correct[members], test.student_correct[members]) if members.any() else None
        for name, members in ((name, test.groups == code) for code, name in GROUP_NAMES.items())
    }
    high = group_differences["high"]
    val_correct = top1_correct(val_logits, test.validation.labels.numpy())
    scores: dict[str, tuple[NDArray[np.floating], NDArray[np.floating]]] = {
        "energy": (val_energy, energy),
        "max_softmax": (softmax_uncertainty(val_logits), softmax_uncertainty(logits)),
    }
    routers = {
        name: route((val_score, val_correct), (score, correct), params.on_device_top1)
        for name, (val_score, score) in scores.items()
    }
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
        "delta_top1_high_energy": None if high is None else high.value,
        "delta_groups": {name: None if found is None else asdict(found) for name, found in group_differences.items()},
        "routing": {"wanted_top1": params.on_device_top1, **routers},
    }
