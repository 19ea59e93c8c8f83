"""What a file answers on this device: its accuracy, and how far it is from the network that it was made of."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.runtimes import Answers, Runtime, joined, run_padded

GROUPS = {"top1_low_energy": 0, "top1_mid_energy": 1, "top1_high_energy": 2}
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Expected:
    """What is known of N images.

    Attributes:
        logits: of the network in full precision, float32 [N, K].
        energy: of these logits, float32 [N].
        labels: int64 [N].
        groups: int8 [N]: 0 low, 1 middle, 2 high energy, -1 unknown.
    """

    logits: NDArray[np.float32]
    energy: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int8]

    @classmethod
    def load(cls, path: Path) -> Expected:
        """From a .npz file.

        Raises:
            ValueError: not such a file, an array is missing, or the arrays are not about the same images.
            OSError: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = cls(*(arrays[name] for name in ("logits", "energy", "labels", "groups")))
        except (KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no archive of logits, energy, labels and groups ({error})") from error
        count = len(found.logits)
        columns = (found.energy, found.labels, found.groups)
        if found.logits.ndim != 2 or not count or any(array.shape != (count,) for array in columns):
            shapes = ", ".join(str(list(array.shape)) for array in (found.logits, *columns))
            raise ValueError(f"{path} needs logits [N, K] and energy, labels and groups [N], but has {shapes}")
        return found


def answers_of(runtime: Runtime, images: NDArray[np.float32], batch: int) -> Answers:
    """The answers to images [N, 3, H, W], asked for in the batches that are timed; the last batch is filled up."""

    def parts() -> Iterator[Answers]:
        for start in range(0, len(images), batch):
            # A copy, because the images may be a read-only map of their file.
            yield run_padded(runtime, np.array(images[start : start + batch]), batch)

    return joined(parts())


def score(answers: Answers, expected: Expected) -> dict[str, Any]:
    """Accuracy and parity, ready for JSON; a number without images or without an energy output is None.

    ``delta_top1`` is the accuracy minus that of the expected logits on the same images, with its 95 % interval.

    Raises:
        ValueError: other shapes than expected, or answers that are not finite.
    """
    logits = answers.logits
    if logits.shape != expected.logits.shape:
        shapes = f"{list(logits.shape)}, but expected are {list(expected.logits.shape)}"
        raise ValueError(f"the file answers with logits {shapes}")
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ValueError(f"the file answers {broken} of {len(logits)} images with numbers that are not finite")
    predicted, wanted = logits.argmax(axis=1), expected.logits.argmax(axis=1)
    correct, reference = predicted == expected.labels, wanted == expected.labels
    low, high = _paired_interval(correct, reference)
    distance = np.abs(logits.astype(np.float64) - expected.logits)
    energy = None if answers.energy is None else np.abs(answers.energy.reshape(-1) - expected.energy)
    return {
        "images": len(logits),
        "top1": float(correct.mean()),
        **{name: _mean(correct[expected.groups == code]) for name, code in GROUPS.items()},
        "top1_reference": float(reference.mean()),
        "delta_top1": float(correct.mean() - reference.mean()),
        "delta_ci_low": low,
        "delta_ci_high": high,
        "parity_max_abs": float(distance.max()),
        "parity_mean_abs": float(distance.mean()),
        "parity_top1_agreement": float((predicted == wanted).mean()),
        "energy_max_abs": None if energy is None else float(energy.max()),
    }


def _mean(correct: NDArray[np.bool_]) -> float | None:
    return float(correct.mean()) if correct.size else None


def _paired_interval(correct: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[float, float]:
    """Wald's interval with 0.5 more in each cell of the 2x2 table (Agresti and Min, Statistics in Medicine 24, 2005).

    The same as that of ``pipeline.evaluation.accuracy``, which does not travel to devices.
    """
    total = len(correct) + 2
    gained = int((correct & ~reference).sum()) + 0.5
    lost = int((~correct & reference).sum()) + 0.5
    centre = (gained - lost) / total
    half = _Z95 * float(np.sqrt(gained + lost - (gained - lost) ** 2 / total)) / total
    return max(centre - half, -1.0), min(centre + half, 1.0)
