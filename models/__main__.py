"""`python -m models` lists the names of the networks without a prefix."""

import models

for name in models.available():
    print(name)  # noqa: T201  this program's only purpose
