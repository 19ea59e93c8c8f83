"""Programs behind the figures in docs/: each measures and prints a table; --out saves it with the raw figures."""

import stages  # noqa: F401  sets the OpenMP limit of the stages before torch is imported, for all arms alike
