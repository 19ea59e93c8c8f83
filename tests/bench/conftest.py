from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import common


@pytest.fixture(autouse=True)
def small_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product that the machine is described by takes seconds."""
    monkeypatch.setitem(common._MATRIX_SIDE, "cpu", 64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with train/ and test/, each of two classes with 12 images of 8 pixels."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(12):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path
