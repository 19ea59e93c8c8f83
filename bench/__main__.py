"""Speed of our own code against a plain reference mode and against the limit: one table of ratios.

python -m bench [--images FOLDER] [--out docs/results/bench]

All arms are measured in one run, in interleaved rounds. A benchmark is no test: a missed target does not fail it.
"""

from __future__ import annotations

# the stages' OpenMP setting, which is read when torch is imported; for all arms alike, the reference gains from it too
import stages  # noqa: F401

# isort: split
import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
from bench import machine, memory
from bench.arms import ARMS, COMPARISONS, MEMORY_ARMS
from bench.images import make_stores
from bench.measure import compare, interleaved, rate_table, ratio_table
from bench.setting import Setting
from pipeline.compute.device import choose_device
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import write_json
from stages.common import progress, run_program

_QUICK = {"teacher": "resnet8", "student": "resnet8", "batch_size": 8, "image_size": 16, "steps": 2, "rounds": 2}


def main(arguments: Sequence[str]) -> None:
    options = _parsed(arguments)
    command = shlex.join(["python", "-m", "bench", *arguments])
    run_program(lambda: _run(options, command))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="wrn_40_2", choices=models.available(), metavar="NETWORK")
    parser.add_argument("--student", default="wrn_16_2", choices=models.available(), metavar="NETWORK")
    parser.add_argument("--batch-size", type=_count, default=64, help="images in a step")
    parser.add_argument("--image-size", type=_count, default=32, help="pixels, at least 8")
    parser.add_argument("--steps", type=_count, default=20, help="timed steps of an arm in a round")
    parser.add_argument("--rounds", type=_count, default=7)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--images", type=Path, help="folder with train/<class>/<image>; without it, digits are used")
    parser.add_argument("--out", type=Path, help="write the result here too, with .md and .json appended")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny networks, few steps, no meaning")
    if "--quick" in arguments:
        parser.set_defaults(**_QUICK)
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _run(options: argparse.Namespace, command: str) -> None:
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory(prefix="bench-") as stores:
        setting = Setting(
            teacher=options.teacher,
            student=options.student,
            batch_size=options.batch_size,
            image_size=options.image_size,
            steps=options.steps,
            warmup_steps=min(5, options.steps),
            device=device.type,
            stores=stores,
        )
        result = {"schema": 1, "command": command, "images": make_stores(options.images, setting)}
        if options.images is None:
            print("no --images: these are digits, not photographs; speed hardly depends on what is in them")
        with progress("bench", options.rounds * len(options.arms), "arm") as advance:
            before = machine.load()
            samples = interleaved({name: ARMS[name](setting) for name in options.arms}, options.rounds, advance)
        result |= {
            "setting": {key: value for key, value in asdict(setting).items() if key != "stores"},
            "rounds": options.rounds,
            "images_per_second": samples,
            "ratios": [
                compare(each, samples) for each in COMPARISONS if {each.numerator, each.denominator} <= set(samples)
            ],
            "memory_mib": memory.measure([name for name in MEMORY_ARMS if name in samples], setting),
            "machine": machine.facts(device) | {"load_before": before, "load_after": machine.load()},
        }
    report = _report(result)
    print(report)
    if options.out is not None:
        write_json(options.out.with_name(options.out.name + ".json"), result)
        with atomic_file(options.out.with_name(options.out.name + ".md")) as temporary:
            temporary.write_text(report, encoding="utf-8")


def _report(result: dict[str, Any]) -> str:
    setting = result["setting"]
    return f"""# Speed of the pipeline's own code

{setting["teacher"]} to {setting["student"]}, batch {setting["batch_size"]}, {setting["image_size"]} x \
{setting["image_size"]} pixels, on {setting["device"]}. Images: {result["images"]}. Medians of {result["rounds"]} \
interleaved rounds of {setting["steps"]} timed steps per arm; a value is the ratio of the medians, and min to max are \
the ratios within a round.

{ratio_table(result["ratios"])}

{rate_table(result["images_per_second"])}

{memory.memory_table(result["memory_mib"])}

Images/s of training are those of the clean batches. Each peak is of one arm in a fresh process, for \
{setting["steps"]} steps a pass; {machine.memory_kind(setting["device"])}.

{machine.described(result["machine"])}

    {result["command"]}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
