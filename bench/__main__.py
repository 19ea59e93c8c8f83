"""Speed of the pipeline as ratios to a plain reference mode and to the bare training step, which is the limit.

python -m bench [--images FOLDER] [--out docs/results/bench]

All arms are measured in one run, in interleaved rounds. A missed target is shown and is no error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import models
from bench.arms import ARMS, COMPARISONS, MEMORY_ARMS, Ours, measure_memory
from bench.common import Result, interleaved, machine_sentence, run, span, table, yes_no
from bench.setting import Setting, make_stores
from pipeline.compute.device import choose_device

_QUICK = {"batch_size": 8, "image_size": 8, "steps": 2, "rounds": 2, "memory": ["ours"]}
_QUICK |= dict.fromkeys(("teacher", "student"), "resnet8")
_MEMORY_OF = {
    "cpu": "resident memory of the process, its loader's workers not counted",
    "cuda": "memory of the GPU that torch had given out",
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=_network, default="wrn_40_2", metavar="NETWORK", help="as in params.yaml")
    parser.add_argument("--student", type=_network, default="wrn_16_2", metavar="NETWORK", help="likewise")
    parser.add_argument("--batch-size", type=_count, default=64, help="images in a step")
    parser.add_argument("--image-size", type=_count, default=32, help="pixels, at least 8")
    parser.add_argument("--steps", type=_count, default=20, help="timed steps of an arm in a round")
    parser.add_argument("--rounds", type=_count, default=7)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--memory", nargs="*", default=MEMORY_ARMS, choices=ARMS, metavar="ARM", help="for memory")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--images", type=Path, help="folder with train/<class>/<image>; without it, digits are used")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny networks, meaningless figures")
    if "--quick" in arguments:
        parser.set_defaults(**_QUICK)
    run(parser, arguments, measure, report)


def _network(name: str) -> str:
    try:
        models.build(name, 2)
    except models.UnknownNetworkError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def measure(options: argparse.Namespace) -> Result:
    device = choose_device(options.device)
    sizes = {name: getattr(options, name) for name in ("teacher", "student", "batch_size", "image_size", "steps")}
    with tempfile.TemporaryDirectory(prefix="bench-") as stores:
        setting = Setting(**sizes, warmup_steps=min(5, options.steps), device=device.type, stores=stores)
        images = make_stores(options.images, setting)
        if options.images is None:
            print("no --images: these are digits, not photographs; speed hardly depends on what is in them")
        setting = replace(setting, precision=Ours(setting).chosen_precision())  # the same in all arms but the reference
        samples = interleaved({name: ARMS[name](setting) for name in options.arms}, options.rounds, "bench")
        compared = [each for each in COMPARISONS if {each.numerator, each.denominator} <= set(samples)]
        return {
            "images": images,
            "setting": {key: value for key, value in asdict(setting).items() if key != "stores"},
            "rounds": options.rounds,
            "images_per_second": samples,
            "ratios": [each.of(samples) for each in compared],
            "memory_mib": measure_memory([name for name in options.memory if name in samples], setting),
        }


def report(result: Mapping[str, Any]) -> str:
    setting = result["setting"]
    ratios = table(
        ("ratio", "images/s, median", "value", "min to max", "target", "met"),
        (
            (
                row["name"],
                f"{row['numerator_median']:,.1f} / {row['denominator_median']:,.1f}",
                f"{row['ratio']:.3f}",
                span((row["lowest"], row["highest"]), ".3f"),
                "".join(f"{sign} {row[key]:g}" for sign, key in (("≥", "at_least"), ("≤", "at_most")) if row[key]),
                yes_no(row["met"]),
            )
            for row in result["ratios"]
        ),
    )
    rates = table(
        ("arm", "images/s, median", "min to max"),
        (
            (name, f"{statistics.median(rates):,.1f}", span(rates, ",.1f"))
            for name, rates in result["images_per_second"].items()
        ),
    )
    peaks = table(
        ("peak memory, MiB", "imported", "peak", "added"),
        (
            (arm, f"{found['imported']:,.0f}", f"{found['peak']:,.0f}", f"{found['peak'] - found['imported']:,.0f}")
            for arm, found in result["memory_mib"].items()
        ),
    )
    in_children = f"of one arm in a fresh process, for {setting['steps']} steps a pass; {_MEMORY_OF[setting['device']]}"
    memory = f"{peaks}\n\nEach peak is {in_children}.\n\n" if result["memory_mib"] else ""
    return f"""# Speed of the pipeline's own code

{setting["teacher"]} to {setting["student"]}, batch {setting["batch_size"]}, {setting["image_size"]} x \
{setting["image_size"]} pixels, in {setting["precision"]} (the reference mode in fp32), on {setting["device"]}. \
Images: {result["images"]}. Medians of {result["rounds"]} \
interleaved rounds of {setting["steps"]} timed steps per arm; a value is the ratio of the medians, and min to max are \
the ratios within a round.

{ratios}

{rates}

{memory}Images/s of training are those of the clean batches.

{machine_sentence(result["machine"])}

    {result["command"]}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
