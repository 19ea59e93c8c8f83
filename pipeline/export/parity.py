"""Does a file compute what the student computes? Numbers, and the gate that refuses a file that does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import ParityParams
from pipeline.energy.groups import energy_score
from pipeline.errors import ExportError
from pipeline.runtimes import Answers

_HALF_STEPS = 4  # of float16's relative step: a runtime may compute all of a file in it


@dataclass(frozen=True)
class Parity:
    """Logits of a file beside those of the torch network, on the same images.

    Attributes:
        images: compared.
        max_abs, mean_abs: of the difference, over all logits.
        cosine: of the two sets of logits, each taken as one vector.
        top1_agreement: share of images with the same largest logit.
        smallest_flipped_margin, largest_flipped_margin: over the images whose answer changed, the reference's distance
            from its largest to its second logit; a large one is a confident answer that changed. None if none changed.
    """

    images: int
    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float
    smallest_flipped_margin: float | None
    largest_flipped_margin: float | None


def compare(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Parity:
    """Compare finite logits [N, K] with the reference's, N >= 1.

    Raises:
        ValueError: the shapes differ, are not [N, K], or hold nothing.
    """
    if reference.shape != logits.shape or reference.ndim != 2 or reference.size == 0:
        raise ValueError(f"logits of shape {logits.shape} cannot be compared with {reference.shape}")
    wanted, got = reference.astype(np.float64), logits.astype(np.float64)
    difference = np.abs(got - wanted)
    flipped = wanted.argmax(axis=1) != got.argmax(axis=1)
    ranked = np.sort(wanted[flipped], axis=1)
    margins = ranked[:, -1] - ranked[:, -2] if flipped.any() else None
    return Parity(
        images=len(wanted),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        cosine=_cosine(wanted, got),
        top1_agreement=float(1 - flipped.mean()),
        smallest_flipped_margin=None if margins is None else float(margins.min()),
        largest_flipped_margin=None if margins is None else float(margins.max()),
    )


def fp32_limit(reference: NDArray[np.float32], limits: ParityParams) -> float:
    """Largest allowed |logit difference| of an fp32 file.

    It is ``fp32_max_abs`` as it stands while the largest |logit| is at most 10, as is usual, and grows in proportion
    above: float32 rounds relative to the magnitude, so a constant limit would refuse faithful files of networks with
    large logits. At the default of 1e-4 that is a relative error of 1e-5, about 84 units in the last place.
    """
    return limits.fp32_max_abs * max(1.0, float(np.abs(reference).max()) / 10)


def check_parity(
    file: str, precision: str, reference: NDArray[np.float32], logits: NDArray[np.float32], limits: ParityParams
) -> Parity:
    """Compare, and refuse a file that is too far from the reference: fp32 by its logits, fp16 and int8 by its answers.

    Raises:
        ExportError: the file's logits have another shape, are not finite, or are beyond the limit of its precision.
    """
    if logits.shape != reference.shape:
        raise ExportError(
            f"{file} returns logits of shape {logits.shape} where the network returns {reference.shape}; export it "
            "again"
        )
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ExportError(
            f"{file} gives logits that are not finite for {broken} of {len(logits)} images; {_advice(precision)}"
        )
    parity = compare(reference, logits)
    if precision == "fp32":
        limit = fp32_limit(reference, limits)
        if parity.max_abs > limit:
            raise ExportError(
                f"{file} differs from the torch network by up to {parity.max_abs:.3g} in its logits, above the limit "
                f"of {limit:.3g}; check the versions of torch, onnx and the runtime against constraints.txt, or raise "
                "export.parity.fp32_max_abs"
            )
    elif parity.top1_agreement < limits.minimum_agreement:
        raise ExportError(
            f"{file} gives the torch network's answer for {parity.top1_agreement:.4f} of {parity.images} images, below "
            f"the limit of {limits.minimum_agreement:g}; {_advice(precision)}, or lower export.parity.minimum_agreement"
        )
    return parity


def check_energy(file: str, answers: Answers, reference: NDArray[np.float32], temperature: float) -> float:
    """Refuse a file whose second output is not the energy of its first, in the precision that logits have.

    Args:
        answers: of the file, finite logits [N, K].
        reference: logits [N, K] of the torch network on the same images.
        temperature: T_E.

    Returns:
        The largest absolute difference of the file's energies from the torch network's.

    Raises:
        ExportError: there is no such output, or it is off by more than float16 rounds.
    """
    if answers.energy is None or answers.energy.shape != answers.logits.shape[:1]:
        raise ExportError(f"{file} returns no energy of each image; export it again")
    own = _energy(answers.logits, temperature)
    off = float(np.abs(answers.energy - own).max())
    limit = _HALF_STEPS * float(np.finfo(np.float16).eps) * max(1.0, float(np.abs(own).max()))
    if not off <= limit:  # also if it is not a number
        raise ExportError(
            f"{file} returns energies that differ by up to {off:.3g} from those of its own logits, above {limit:.3g}; "
            "check the versions of onnx and the runtime against constraints.txt"
        )
    return float(np.abs(answers.energy - _energy(reference, temperature)).max())


def _energy(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    energy: NDArray[np.float64] = energy_score(torch.from_numpy(logits).double(), temperature).numpy()
    return energy


def _advice(precision: str) -> str:
    match precision:
        case "int8":
            return "raise export.calibration.images or take int8 out of export.precisions"
        case "fp16":
            return "take fp16 out of export.precisions"
        case _:
            return "check the versions of torch, onnx and the runtime against constraints.txt"


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.vdot(a, b) / norms)
