"""`python -m models` lists the networks that need no prefix."""

from __future__ import annotations

import models

for name in models.available():
    print(name)  # noqa: T201  this program's only purpose
