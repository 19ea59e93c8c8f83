"""Stage show: put a device's result and budget where the report sees them.

python -m stages.show NAME
"""

from __future__ import annotations

import argparse

from pipeline.store.paths import TARGET_INDEX
from pipeline.target_config import find_target
from pipeline.targets import enter_result
from stages.common import run_program


def show(name: str) -> None:
    enter_result(name, find_target(name).budget)
    print(f"{name} is in {TARGET_INDEX}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.show", description=__doc__)
    parser.add_argument("name", help="folder in targets/")
    arguments = parser.parse_args()
    run_program(lambda: show(arguments.name))


if __name__ == "__main__":
    main()
