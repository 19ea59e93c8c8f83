"""The distillation temperature of each image: that of its energy group, or continuous in the teacher's certainty.

By groups: Kim et al. (arXiv 2311.14334). Continuous: the ratio of the largest logit to the temperature governs the
entropy of a soft label (the idea of CIST, arXiv 2605.20357), so the temperature rises with the certainty: the direction
of Kim et al. without thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.compute.seeds import RANDOM_GROUPS, stream_seed
from pipeline.config import CertaintyName, TemperatureParams
from pipeline.energy.groups import HIGH, LOW, EnergyGroups, energy_score
from pipeline.errors import ParamsError


@dataclass(frozen=True)
class Temperatures:
    """Distillation temperatures of N scored images, and their rule.

    Attributes:
        stored: float32 [N], by the stored scores.
        of: kind of certainty that they follow; see :func:`certainty`.
        of_certainty: the rule for others, [B] -> [B], with the thresholds or the mean of the N images.
        energy_temperature: T_E > 0 of the scores.
    """

    stored: Tensor
    of: CertaintyName
    of_certainty: Callable[[Tensor], Tensor]
    energy_temperature: float

    def of_logits(self, logits: Tensor) -> Tensor:
        """The rule for logits: [B, K] -> [B]."""
        return self.of_certainty(certainty(logits, self.of, self.energy_temperature))

    def shuffled(self, seed: int) -> Temperatures:
        """The same temperatures, assigned to the images at random: the control of the method."""
        generator = torch.Generator().manual_seed(stream_seed(seed, RANDOM_GROUPS))
        order = torch.randperm(self.stored.numel(), generator=generator)
        return replace(self, stored=self.stored[order.to(self.stored.device)])


def group_temperatures(groups: EnergyGroups, energy_temperature: float, params: TemperatureParams) -> Temperatures:
    """One temperature for each group of the N images; others belong to a group by their energy.

    Args:
        energy_temperature: T_E > 0 of the scores.
    """

    def of_codes(codes: Tensor) -> Tensor:
        return sample_temperatures(codes, params.low_energy, params.mid, params.high_energy)

    stored = of_codes(groups.codes)
    return Temperatures(stored, "energy", lambda values: of_codes(groups.assign(-values)), energy_temperature)


def certainty_temperatures(stored: Tensor, energy_temperature: float, params: TemperatureParams) -> Temperatures:
    """Temperatures in proportion to the certainty of the N images: mid at its mean, within the limits of ``params``.

    Args:
        stored: float32 [N], certainty of the images, of the kind that ``params.of`` names.
        energy_temperature: T_E > 0 of the scores.

    Raises:
        ParamsError: the mean certainty is not positive, so nothing can be in proportion to it; names the key in the
            block of a student.
    """
    mean = float(stored.double().mean())
    if not mean > 0:
        advice = "set it to max_logit" if params.of == "energy" else "use another teacher"
        raise ParamsError(
            f"temperatures.of is {params.of}, but the training images have a mean certainty of "
            f"{mean:g} by it, and temperatures can follow only one above 0; {advice}, or mode to groups"
        )
    limits = params.limits

    def of_certainty(values: Tensor) -> Tensor:
        return continuous_temperatures(values, mean, params.mid, *limits)

    return Temperatures(of_certainty(stored), params.of, of_certainty, energy_temperature)


def sample_temperatures(codes: Tensor, low_energy: float, mid: float, high_energy: float) -> Tensor:
    """Temperature of each sample by its energy group.

    Args:
        codes: integer [B]; 0 low, 1 middle, 2 high.
        low_energy, mid, high_energy: temperature of each group, > 0. The paper: 6, 4, 2. The released code: 2, 4, 6.

    Returns:
        float32 [B].
    """
    # numbers are kernel arguments; copying a table from the host would make it wait for all queued work of a GPU
    temperatures = torch.full(codes.shape, mid, dtype=torch.float32, device=codes.device)
    return temperatures.masked_fill_(codes == LOW, low_energy).masked_fill_(codes == HIGH, high_energy)


def continuous_temperatures(values: Tensor, mean: float, mid: float, lowest: float, highest: float) -> Tensor:
    """mid * x_i / mean, limited to [lowest, highest]: [B] of the type of ``values``.

    Args:
        values: x, certainty of each sample, [B], of either sign.
        mean: of the certainty over the training split, > 0.
        mid: temperature at the mean, > 0.
        lowest, highest: limits, 0 < lowest <= highest.
    """
    return (mid * (values / mean)).clamp(lowest, highest)


def certainty(logits: Tensor, of: CertaintyName, energy_temperature: float) -> Tensor:
    """How certain logits [B, K] are of their class, [B]: by ``of`` energy, -E, or max_logit, :func:`max_logit`.

    Args:
        energy_temperature: T_E > 0, for the energy.
    """
    return -energy_score(logits, energy_temperature) if of == "energy" else max_logit(logits)


def max_logit(logits: Tensor) -> Tensor:
    """The largest logit less the mean of the logits, in float32 or wider: [B], >= 0, unmoved by a shift of all logits.

    Args:
        logits: [B, K], of any floating type.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (logits.amax(dim=1, keepdim=True) - logits).mean(dim=1)
