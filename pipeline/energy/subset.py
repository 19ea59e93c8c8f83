"""Which images HE-DA mixes: the share of the training split with the highest energy, or one of its two controls.

Kim et al., arXiv 2311.14334, second half of the method.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.compute.seeds import SUBSET, stream_seed
from pipeline.energy.groups import energy_order

PAPER_RANGE = (0.2, 0.5)


def select_subset(energy: Tensor, fraction: float, subset: str = "high_energy", seed: int = 0) -> Tensor:
    """Indices of the share ``fraction`` of the images with the highest energy, or of one of its two controls.

    Args:
        energy: [N].
        fraction: in (0, 1]; the paper's range is 0.2 to 0.5.
        subset: ``high_energy``; or, equally large, ``low_energy``, or ``random``, drawn from ``seed``.

    Returns:
        int64 [int(N * fraction)], ascending; ties in energy are ranked by index.

    Raises:
        ValueError: ``fraction`` is outside (0, 1], or so small that nothing is selected, or an energy is not finite.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the HE-DA fraction must lie in (0, 1], not {fraction}")
    total = energy.numel()
    count = int(total * fraction)
    if count == 0:
        raise ValueError(f"the HE-DA fraction {fraction} of {total} images selects none")
    ascending = energy_order(energy)
    match subset:
        case "high_energy":
            chosen = ascending[total - count :]
        case "low_energy":
            chosen = ascending[:count]
        case "random":
            order = torch.randperm(total, generator=torch.Generator().manual_seed(stream_seed(seed, SUBSET)))
            chosen = order[:count].to(energy.device)
        case _:
            raise ValueError(f"there is no HE-DA subset {subset!r}")
    return chosen.sort().values
