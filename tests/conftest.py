"""What the tests share: reference figures and small packed stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import Params, load_params

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, NDArray]:
    """Figures of the public reference implementations; tests/golden/README.md says which."""
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def params() -> Params:
    """The parameters as shipped."""
    return load_params(ROOT / "params.yaml")
