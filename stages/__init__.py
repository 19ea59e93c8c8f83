"""One thin program per DVC stage: read the parameters, call the pipeline, write the outputs, show progress."""

import os

# a program that starts with closed streams (`>&-`) would open files under their numbers, and what libraries print would
# be written into these files
while (_descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
    os.set_inheritable(_descriptor, True)
os.close(_descriptor)

# GNU OpenMP lets the idle threads of torch spin for milliseconds. Beside a busy process they hold the core that the
# other threads wait for, and training suffers far more than by the share it loses (bench/openmp_spin.py measures it).
# The limit is read when torch is imported, which is after this line.
_SPIN_COUNT = "GOMP_SPINCOUNT"
_ADDED = _SPIN_COUNT not in os.environ


def limit_spinning() -> None:
    """Set the limit, for this process if torch is not yet imported, and for child processes."""
    os.environ.setdefault(_SPIN_COUNT, "1000")


limit_spinning()


def restore_environment() -> None:
    """Remove the setting, so that child processes, above all the timed ones, have the user's environment."""
    if _ADDED:
        os.environ.pop(_SPIN_COUNT, None)
