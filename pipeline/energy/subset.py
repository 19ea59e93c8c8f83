"""The subset for HE-DA: the share of the training split with the highest energy, or one of its two controls.

Kim et al., arXiv 2311.14334, second half of the method.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.seeds import SUBSET, stream_seed
from pipeline.config import HedaParams
from pipeline.energy.groups import energy_order
from pipeline.errors import DataError
from pipeline.lineage import Run
from pipeline.store.space import require_space
from pipeline.store.tables import ROW_BYTES, SubsetLineage, write_table

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


def make_subset(run: Run, params: HedaParams, seed: int) -> NDArray[np.int64]:
    """Choose the subset that ``params`` ask for, write it to its place in the run, and return its indices [M].

    Raises:
        DataError: the fraction selects no image.
        SpaceError: the disk cannot hold the table.
    """
    scores: dict[str, Any] = dict(run.energy.columns)
    require_space(run.places.subset, (size := len(scores["label"]) * ROW_BYTES), "the chosen images", output=size)
    try:
        energy = torch.from_numpy(scores["energy"].copy())
        chosen = select_subset(energy, params.fraction, params.subset, seed).numpy()
    except ValueError as error:
        raise DataError(f"params.yaml: heda.fraction: {error}; raise the fraction or add images") from None
    lineage = SubsetLineage(
        data=run.data.fingerprint, energy=run.energy_sha256, fraction=params.fraction, subset=params.subset
    )
    columns = {"index": chosen, "label": scores["label"][chosen], "energy": scores["energy"][chosen]}
    write_table(run.places.subset, [columns], lineage)
    return chosen
