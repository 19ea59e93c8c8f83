from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Three classes of sixteen small photographs of mixed sizes and modes."""
    generator = np.random.default_rng(0)
    root = tmp_path / "photos"
    for label, name in enumerate(["ant", "bee", "cat"]):
        folder = root / "train" / name / "nested"
        folder.mkdir(parents=True)
        for i in range(16):
            height, width = generator.integers(10, 40, 2)
            pixels = generator.integers(0, 80, (height, width, 3)) + 80 * label
            image = Image.fromarray(pixels.astype(np.uint8))
            image = image.convert("L") if i == 0 else image
            image.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    return root
