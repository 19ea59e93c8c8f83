"""Accuracy of a model file, and its paired difference and numerical parity to a reference network.

The export stage, the evaluation on this machine and the worker on a device all use this scorer.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

GROUPS = {"low": 0, "mid": 1, "high": 2}  # energy groups and their codes
_Z95 = 1.959963984540054
_MAX = 1e30  # upper limit for counts of images and differences of logits
_TOP1_TOLERANCE = 1e-6


class Outputs(NamedTuple):
    """Outputs of a network for B images.

    Attributes:
        logits: float32 [B, K].
        energy: energies of these logits, float32 [B]; None if the file has no energy output.
    """

    logits: NDArray[np.float32]
    energy: NDArray[np.float32] | None


@dataclass(frozen=True)
class Expected:
    """Reference outputs and labels of N images.

    Attributes:
        logits: logits of the network in full precision, float32 [N, K].
        energy: energies of these logits, float32 [N].
        labels: int64 [N].
        groups: codes of the energy groups, int8 [N]; -1 is unknown.
    """

    logits: NDArray[np.float32]
    energy: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int8]

    def save(self, file: IO[bytes]) -> None:
        """Write an .npz file. Equal arrays give equal bytes: numpy dates the members 1980."""
        np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Expected:
        """Read an .npz file.

        Raises:
            ValueError: the file is no .npz file, an array is missing, or the shapes do not fit each other.
            OSError: the file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                expected = cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except (KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no archive of logits, energy, labels and groups ({error})") from error
        count = len(expected.logits)
        columns = (expected.energy, expected.labels, expected.groups)
        if expected.logits.ndim != 2 or not count or any(array.shape != (count,) for array in columns):
            shapes = ", ".join(str(list(array.shape)) for array in (expected.logits, *columns))
            raise ValueError(f"{path} needs logits [N, K] and energy, labels and groups [N], but has {shapes}")
        return expected


@dataclass(frozen=True)
class Parity:
    """Numerical agreement of a file's logits with those of the reference, on the same images.

    Attributes:
        images: number of images.
        max_abs, mean_abs: largest and mean absolute difference over all logits.
        cosine: cosine similarity of the two sets of logits, each flattened to one vector.
        top1_agreement: share of images with the same top-1 class.
        largest_flipped_margin: largest margin (top logit minus second logit) of the reference over the images whose
            top-1 class changed. A large value means that a confident prediction changed. None if no class changed.
    """

    images: int
    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float
    largest_flipped_margin: float | None


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one file on labelled images; None for an energy group without images or a missing comparison.

    ``correct`` tells for each image, in order, whether its top-1 class is the label, as in :func:`pack_correct`.
    ``delta_*`` is the file's top-1 minus the reference's on the same images, with its 95 % interval.

    Raises:
        ValueError: a number is out of its range, or ``correct`` does not fit ``images`` and ``top1``.
    """

    images: int
    top1: float
    correct: str
    top1_low_energy: float | None
    top1_mid_energy: float | None
    top1_high_energy: float | None
    delta_top1: float
    delta_ci_low: float
    delta_ci_high: float
    delta_top1_low_energy: float | None
    delta_low_energy_ci_low: float | None
    delta_low_energy_ci_high: float | None
    delta_top1_mid_energy: float | None
    delta_mid_energy_ci_low: float | None
    delta_mid_energy_ci_high: float | None
    delta_top1_high_energy: float | None
    delta_high_energy_ci_low: float | None
    delta_high_energy_ci_high: float | None
    parity_max_abs: float | None
    parity_mean_abs: float | None
    parity_top1_agreement: float | None
    energy_max_abs: float | None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "correct":
                continue
            lowest, highest = -1 if name.startswith("delta") else 0, 1 if "top1" in name or "delta" in name else _MAX
            if value is not None and not lowest <= value <= highest:
                raise ValueError(f"{name} is {value}")
        correct = int(unpack_correct(self.correct, self.images).sum())
        if abs(correct - self.top1 * self.images) > _TOP1_TOLERANCE * self.images:
            raise ValueError(f"top1 is {self.top1}, but {correct} of {self.images} images are correct")


@dataclass(frozen=True)
class Difference:
    """Top-1 of one network minus top-1 of another on the same images, with a 95 % interval."""

    value: float
    low: float
    high: float


def top1_correct(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Compare the largest of the logits [N, K] with the labels; returns bool [N]."""
    correct: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return correct


def pack_correct(correct: NDArray[np.bool_]) -> str:
    """Hexadecimal digits of bool [N]: the first image is the highest bit, zeros fill the last byte."""
    return np.packbits(correct).tobytes().hex()


def unpack_correct(text: str, count: int) -> NDArray[np.bool_]:
    """Inverse of :func:`pack_correct` for ``count`` images; returns bool [count].

    Raises:
        ValueError: ``text`` is not what ``pack_correct`` writes for so many images.
    """
    try:
        correct = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(bool)
    except ValueError:
        raise ValueError("correct has characters that are no hexadecimal digits") from None
    if len(correct) != count or pack_correct(correct) != text:
        raise ValueError(f"correct does not hold one bit for each of {count} images")
    return correct


def group_accuracy(correct: NDArray[np.bool_], groups: NDArray[np.int8]) -> dict[str, float | None]:
    """Top-1 of each energy group; None for a group without images."""
    return {
        name: float(correct[groups == code].mean()) if (groups == code).any() else None for name, code in GROUPS.items()
    }


def paired_difference(correct: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Difference:
    """Difference of two proportions on matched pairs (Agresti and Min, Statistics in Medicine 24, 2005).

    The interval is the Wald interval after adding 0.5 to each cell of the 2x2 table. Its coverage holds in small
    samples, and its width stays above zero when the two networks never disagree.
    """
    count = len(correct)
    gained = int((correct & ~reference).sum())
    lost = int((~correct & reference).sum())
    total, only_new, only_old = count + 2, gained + 0.5, lost + 0.5
    centre = (only_new - only_old) / total
    half = _Z95 * float(np.sqrt(only_new + only_old - (only_new - only_old) ** 2 / total)) / total
    return Difference((gained - lost) / count, max(centre - half, -1.0), min(centre + half, 1.0))


def compare_logits(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Parity:
    """Compare logits [N, K] with those of the reference, N >= 1.

    Raises:
        ValueError: the shapes differ, are not [N, K] or are empty, or logits are not finite.
    """
    if reference.shape != logits.shape or reference.ndim != 2 or reference.size == 0:
        raise ValueError(f"its logits are {list(logits.shape)} where {list(reference.shape)} are expected")
    if broken := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ValueError(f"its logits are not finite for {broken} of {len(logits)} images")
    wanted, actual = reference.astype(np.float64), logits.astype(np.float64)
    distance = np.abs(actual - wanted)
    flipped = wanted.argmax(axis=1) != actual.argmax(axis=1)
    ranked = np.sort(wanted[flipped], axis=1)
    return Parity(
        images=len(wanted),
        max_abs=float(distance.max()),
        mean_abs=float(distance.mean()),
        cosine=_cosine(wanted, actual),
        top1_agreement=float(1 - flipped.mean()),
        largest_flipped_margin=float((ranked[:, -1] - ranked[:, -2]).max()) if flipped.any() else None,
    )


def score(outputs: Outputs, expected: Expected) -> Accuracy:
    """Compute accuracy and parity from the outputs of a file.

    Raises:
        ValueError: the shapes differ from the expected ones, or outputs are not finite.
    """
    logits, parity = outputs.logits, compare_logits(expected.logits, outputs.logits)
    correct, reference = (top1_correct(values, expected.labels) for values in (logits, expected.logits))
    difference = paired_difference(correct, reference)
    energy = None if outputs.energy is None else np.abs(outputs.energy.reshape(-1) - expected.energy)
    groups: dict[str, Any] = {}
    for name, code in GROUPS.items():
        members = expected.groups == code
        delta = paired_difference(correct[members], reference[members]) if members.any() else None
        groups |= {
            f"top1_{name}_energy": None if delta is None else float(correct[members].mean()),
            f"delta_top1_{name}_energy": None if delta is None else delta.value,
            f"delta_{name}_energy_ci_low": None if delta is None else delta.low,
            f"delta_{name}_energy_ci_high": None if delta is None else delta.high,
        }
    return Accuracy(
        images=len(logits),
        top1=float(correct.mean()),
        correct=pack_correct(correct),
        **groups,
        delta_top1=difference.value,
        delta_ci_low=difference.low,
        delta_ci_high=difference.high,
        parity_max_abs=parity.max_abs,
        parity_mean_abs=parity.mean_abs,
        parity_top1_agreement=parity.top1_agreement,
        energy_max_abs=None if energy is None else float(energy.max()),
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.vdot(a, b) / norms)
