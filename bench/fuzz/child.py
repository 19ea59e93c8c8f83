"""A process that judges a run of cases and tells of each before and after, so that its own crash or hang is named.

python -m bench.fuzz.child TARGET FIRST COUNT FOLDER
"""

from __future__ import annotations

import faulthandler
import json
import logging
import random
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from bench.fuzz.judge import fresh, judge
from bench.fuzz.readers import TARGETS


def main() -> None:
    name, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    faulthandler.enable()
    logging.disable()
    warnings.simplefilter("ignore")
    target = TARGETS[name]
    seeds = target.seeds(folder / "seeds")
    print("ready", flush=True)
    for seed in range(first, first + count):
        fresh(folder / "case")
        target.write(random.Random(f"{name} {seed}"), seeds, folder / "case/in")  # noqa: S311  repeatable, not secret
        print(f"begin {seed}", flush=True)
        print(json.dumps({"seed": seed, **asdict(judge(target, seeds, folder / "case"))}), flush=True)


if __name__ == "__main__":
    main()
