"""Seconds of each stage's work as the number of images and their size grow, at three points each.

python -m bench.scale --images FOLDER [--out docs/results/scale] [--teacher NETWORK] [--student NETWORK]

FOLDER holds train/<class>/<image>. Each point is measured once, in turn with the others over three rounds, and the
median is shown. What starts up once (imports, the first pass of a network) is left out.
"""

from __future__ import annotations

# the stages' OpenMP setting, which is read when torch is imported
import stages  # noqa: F401

# isort: split
import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import models
from bench import machine
from bench.images import make_stores
from bench.measure import table
from bench.ours import ENERGY_TEMPERATURE, Ours, score
from bench.setting import Setting, data_params
from pipeline.compute.device import choose_device
from pipeline.data.loader import open_images, training_views
from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import write_store
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.subset import select_subset
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import write_json
from pipeline.training.loop import train_classifier
from stages.common import progress, run_program

COUNTS, SIZE = (1280, 2560, 5120), 32
SIZES, COUNT = (32, 64, 128), 640
BATCH = 64
HEDA_FRACTION = 0.4
ROUNDS = 3


class Point:
    """The work of each stage on ``count`` images of ``size`` pixels."""

    def __init__(self, count: int, size: int, options: argparse.Namespace, device: torch.device, folder: Path) -> None:
        self.count, self.size = count, size
        self.setting = Setting(
            options.teacher, options.student, BATCH, size, count // BATCH, 0, device.type, str(folder)
        )
        make_stores(options.images, self.setting)
        self._folder, self._device = folder, device
        self._ours = Ours(self.setting, HEDA_FRACTION)
        self.work: dict[str, Callable[[], float]] = {
            "prepare, packed": lambda: self._prepare("packed"),
            "prepare, files": lambda: self._prepare("files"),
            "train_teacher, an epoch": self._teach,
            "score_energy, packed": lambda: self._score("packed"),
            "score_energy, files": lambda: self._score("files"),
            "groups and subset": self._group,
            f"distill, an epoch, HE-DA {HEDA_FRACTION:g}": lambda: self.count / self._ours(),
        }

    def _timed(self, work: Callable[[], Any]) -> float:
        started = self.setting.clock()
        work()
        return self.setting.clock() - started

    def _prepare(self, storage: str) -> float:
        params = data_params("imagefolder", self._folder / "chosen", self.size, storage)
        source = open_source(params)
        return self._timed(lambda: write_store(self._folder / "again", source, split(source, params), params))

    def _teach(self) -> float:
        params = self.setting.params().distill.training
        views = training_views(data_params("imagefolder", self._folder, self.size, "packed"))
        images = open_images(self.setting.store(), "train", self._device, **views)
        few = open_images(self.setting.store(), "test", self._device)
        teacher = self.setting.network(self.setting.teacher)
        return train_classifier(teacher, images, few, params, 0)[-1].seconds

    def _score(self, storage: str) -> float:
        images = open_images(self.setting.store(storage), "train", self._device)
        teacher = self.setting.network(self.setting.teacher).to(memory_format=torch.channels_last)
        return self._timed(lambda: score(teacher, images))

    def _group(self) -> float:
        energy = torch.randn(self.count)

        def work() -> None:
            EnergyGroups.fit(energy, 0.2, 0.2)
            select_subset(energy, HEDA_FRACTION)

        return self._timed(work)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with train/<class>/<image>")
    parser.add_argument("--teacher", default="wrn_40_2", choices=models.available(), metavar="NETWORK")
    parser.add_argument("--student", default="wrn_16_2", choices=models.available(), metavar="NETWORK")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="write the result here too, with .md and .json appended")
    options = parser.parse_args(arguments)
    run_program(lambda: _run(options, shlex.join(["python", "-m", "bench.scale", *arguments])))


def _run(options: argparse.Namespace, command: str) -> None:
    device = choose_device(options.device)
    wanted = [(count, SIZE) for count in COUNTS] + [(COUNT, size) for size in SIZES]
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        points = [Point(*each, options, device, Path(root, str(place))) for place, each in enumerate(wanted)]
        seconds: list[dict[str, list[float]]] = [{name: [] for name in point.work} for point in points]
        before = machine.load()
        with progress("bench.scale", ROUNDS * sum(len(point.work) for point in points), "measurement") as advance:
            for _ in range(ROUNDS):
                for point, measured in zip(points, seconds, strict=True):
                    for name, work in point.work.items():
                        measured[name].append(work())
                        advance(1)
    rows = [
        {"images": count, "size": size, "seconds": {name: statistics.median(times) for name, times in measured.items()}}
        for (count, size), measured in zip(wanted, seconds, strict=True)
    ]
    where = machine.facts(device) | {"load_before": before, "load_after": machine.load()}
    result = {"schema": 1, "command": command, "rows": rows, "all_seconds": seconds, "machine": where}
    report = _report(result, options, device)
    print(report)
    if options.out is not None:
        write_json(options.out.with_name(options.out.name + ".json"), result)
        with atomic_file(options.out.with_name(options.out.name + ".md")) as temporary:
            temporary.write_text(report, encoding="utf-8")


def _report(result: dict[str, Any], options: argparse.Namespace, device: torch.device) -> str:
    rows = result["rows"]
    head = ("work, seconds", *(f"{row['images']:,} of {row['size']} px" for row in rows))
    lines = ((name, *(f"{row['seconds'][name]:.3g}" for row in rows)) for name in rows[0]["seconds"])
    return f"""# Cost of each stage as the data grow

{options.teacher} to {options.student}, batch {BATCH}, on {device.type}; medians of {ROUNDS} interleaved rounds. \
T_E = {ENERGY_TEMPERATURE:g}; an epoch without its validation.

{table(head, lines)}

{machine.described(result["machine"])}

    {result["command"]}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
