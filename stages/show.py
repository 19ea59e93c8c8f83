"""Stage show: put a device's result and budget where the report sees them.

python -m stages.show NAME
"""

from pipeline.store.paths import TARGET_INDEX
from pipeline.targets import enter_result, find_target
from stages.common import device_argument, run_program


def show(name: str) -> None:
    enter_result(name, find_target(name).budget)
    print(f"{name} is in {TARGET_INDEX}")


if __name__ == "__main__":
    device = device_argument("stages.show", __doc__)
    run_program(lambda: show(device))
