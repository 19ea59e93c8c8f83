"""Energy of images under the teacher, and groups of energy.

Kim et al., "Maximizing Discrimination Capability of Knowledge Distillation with Energy Function" (arXiv 2311.14334),
first half of the method. Low energy: the teacher is confident. High energy: it is uncertain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.portable.accuracy import GROUPS

LOW, MID, HIGH = GROUPS["low"], GROUPS["mid"], GROUPS["high"]
_DEGENERATE = (
    "the teacher gives the same answer for all images, or its logits are too large for float32; check its "
    "accuracy, or use another teacher or energy.temperature"
)


def energy_score(logits: Tensor, temperature: float) -> Tensor:
    """E(x) = -T_E * logsumexp(z(x) / T_E), in float32 or wider.

    Args:
        logits: [B, K], the teacher's, of any floating type.
        temperature: T_E > 0; 4 in the authors' code.

    Returns:
        [B]; the lower, the more confident the teacher.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"the energy temperature must be positive, not {temperature}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -temperature * torch.logsumexp(logits / temperature, dim=1)


@dataclass(frozen=True)
class EnergyGroups:
    """Low, middle and high group of N scored images.

    Attributes:
        codes: int8 [N]; 0 low, 1 middle, 2 high. Sizes are exact: int(N * low_fraction) and int(N * high_fraction)
            by rank, ties ranked by index.
        low_threshold: an energy below it is low; the smallest energy that is not in the low group.
        high_threshold: an energy above it is high; the largest energy that is not in the high group.
    """

    codes: Tensor
    low_threshold: float
    high_threshold: float

    @classmethod
    def fit(cls, energy: Tensor, low_fraction: float, high_fraction: float) -> EnergyGroups:
        """Split energies [N] by rank; both fractions lie in [0, 1] and add up to at most 1.

        Raises:
            ValueError: an energy is not finite.
        """
        order = energy_order(energy)
        count = energy.numel()
        low_count, high_count = int(count * low_fraction), int(count * high_fraction)
        codes = torch.full((count,), MID, dtype=torch.int8, device=energy.device)
        codes[order[:low_count]] = LOW
        codes[order[count - high_count :]] = HIGH
        low_threshold = float(energy[order[low_count]]) if low_count < count else float("inf")
        high_threshold = float(energy[order[count - high_count - 1]]) if high_count < count else float("-inf")
        return cls(codes, low_threshold, high_threshold)

    def assign(self, energy: Tensor) -> Tensor:
        """Group of other energies [B] by the two thresholds: int8 [B]. Both comparisons are strict."""
        codes = torch.full_like(energy, MID, dtype=torch.int8)
        return codes.masked_fill_(energy < self.low_threshold, LOW).masked_fill_(energy > self.high_threshold, HIGH)


def fit_groups(energy: Tensor, low_fraction: float, high_fraction: float) -> EnergyGroups:
    """:meth:`EnergyGroups.fit` of the energies [N] of a training split; degenerate groups are refused.

    Raises:
        DataError: all images are in one group though several are asked for, all have one energy, or the low and the
            high group share an energy; names images.
        ValueError: as of the fit.
    """
    groups = EnergyGroups.fit(energy, low_fraction, high_fraction)
    count = energy.numel()
    if low_fraction + high_fraction > 0 and bool((groups.codes == MID).all()):
        raise DataError(
            f"energy.low_fraction {low_fraction:g} and high_fraction {high_fraction:g} of {count} images are less than "
            "one image, so that all are in the middle group; raise them or add images"
        )
    if low_fraction + high_fraction > 0 and count > 1 and bool((energy == energy[0]).all()):
        raise DataError(f"all {count:,} images (0, 1, ...) have the energy {float(energy[0]):g}: {_DEGENERATE}")
    low, high = energy[groups.codes == LOW], energy[groups.codes == HIGH]
    if len(low) and len(high) and low.max() == high.min():
        tied = (energy == low.max()).nonzero().flatten()[:8].tolist()
        raise DataError(
            f"low and high energy group meet at the energy {float(low.max()):g}, which images "
            f"{', '.join(map(str, tied))}, ... have: {_DEGENERATE}"
        )
    return groups


def energy_order(energy: Tensor) -> Tensor:
    """int64 [N]: indices of N energies from low to high, ties by index: the ranks that groups and subsets share.

    Raises:
        ValueError: an energy is not finite.
    """
    bad = (~torch.isfinite(energy)).nonzero().flatten()
    if bad.numel():
        raise ValueError(f"{bad.numel()} energies are not finite, the first at index {int(bad[0])}")
    return torch.argsort(energy, stable=True)
