"""Programs behind the figures in docs/: each measures, and prints a table; --out keeps it with the raw figures."""

import stages  # noqa: F401  its OpenMP setting, which is read when torch is imported; all that is compared gains from it
