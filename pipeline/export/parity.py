"""Parity check: an exported file is refused if its outputs differ too much from those of its network."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import ParityParams
from pipeline.energy.groups import energy_score
from pipeline.errors import ExportError
from pipeline.portable.accuracy import Difference, Outputs, Parity, compare_logits, paired_difference, top1_correct

_HALF_STEPS = 4  # tolerance in units of float16's epsilon, because a runtime may compute the whole file in float16


def fp32_limit(reference: NDArray[np.float32], limits: ParityParams) -> float:
    """Largest allowed |logit difference| of an fp32 file.

    The limit is ``fp32_max_abs`` while the largest |logit| is at most 10, the usual case. Above 10 it grows in
    proportion, because float32 rounding errors do; a constant limit would refuse correct files with large logits. The
    default of 1e-4 is a relative error of 1e-5, about 84 units in the last place.
    """
    return limits.fp32_max_abs * max(1.0, float(np.abs(reference).max()) / 10)


def check_parity(
    file: str,
    precision: str,
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    limits: ParityParams,
) -> tuple[Parity, Difference]:
    """Compare a file with the reference: its logits [N, K], and its top-1 accuracy on the same images.

    An fp32 file is judged by its logits. An fp16 or int8 file is judged by its accuracy, and not by the share of equal
    answers: a network with thin margins changes many answers that were wrong before.

    Raises:
        ExportError: the logits have another shape, are not finite, or exceed the limit of the precision.
    """
    try:
        parity = compare_logits(reference, logits)
    except ValueError as error:
        raise ExportError(f"{file}: {error}; {_advice(precision)}") from None
    if precision == "fp32":
        limit = fp32_limit(reference, limits)
        if parity.max_abs > limit:
            raise ExportError(
                f"{file} differs from the torch network by up to {parity.max_abs:.3g} in its logits, above the limit "
                f"of {limit:.3g}; {_advice(precision)}, or raise export.parity.fp32_max_abs"
            )
    change = paired_difference(top1_correct(logits, labels), top1_correct(reference, labels))
    if precision != "fp32" and change.high < -limits.max_top1_drop:
        raise ExportError(
            f"{file} loses {-100 * change.value:.1f} points of top-1 accuracy on {parity.images} images (95 % interval "
            f"{-100 * change.high:.1f} to {-100 * change.low:.1f}), above the limit of {100 * limits.max_top1_drop:g}; "
            f"{_advice(precision)}, or raise export.parity.max_top1_drop"
        )
    return parity, change


def check_energy(file: str, outputs: Outputs, reference: NDArray[np.float32], temperature: float) -> float:
    """Check that a file's second output is the energy of its logits; return its largest difference to the network's.

    Args:
        outputs: of the file, finite logits [N, K].
        reference: logits [N, K] of the torch network on the same images.
        temperature: T_E.

    Raises:
        ExportError: the output is missing, or differs by more than float16 rounding errors.
    """
    if outputs.energy is None or outputs.energy.shape != outputs.logits.shape[:1]:
        raise ExportError(f"{file} does not return one energy per image; export it again")
    expected = _energy(outputs.logits, temperature)
    error = float(np.abs(outputs.energy - expected).max())
    limit = _HALF_STEPS * float(np.finfo(np.float16).eps) * max(1.0, float(np.abs(expected).max()))
    if not error <= limit:  # true for NaN as well
        raise ExportError(
            f"{file} returns energies that differ by up to {error:.3g} from those of its logits, above {limit:.3g}; "
            "check the versions of onnx and the runtime against constraints.txt"
        )
    return float(np.abs(outputs.energy - _energy(reference, temperature)).max())


def _energy(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    energy: NDArray[np.float64] = energy_score(torch.from_numpy(logits).double(), temperature).numpy()
    return energy


def _advice(precision: str) -> str:
    if precision == "fp32":
        return "check the versions of torch, onnx and the runtime against constraints.txt"
    images = "raise export.calibration.images or " if precision == "int8" else ""
    return f"{images}take {precision} out of export.precisions"
