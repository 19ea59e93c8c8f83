"""Seconds of each stage for three numbers of images and three image sizes.

python -m bench.scale --images FOLDER [--out docs/results/scale] [--teacher NETWORK] [--student NETWORK]

FOLDER holds train/<class>/<image>. Each point is measured once in each of three interleaved rounds, and the median is
shown. Start-up (imports, the first pass of a network) is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import models
from bench.arms import ENERGY_TEMPERATURE, Ours, score
from bench.common import Result, interleaved, machine_sentence, run, table
from bench.setting import Setting, data_params, make_stores
from pipeline.compute.device import choose_device
from pipeline.data.store import make_store
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.subset import select_subset
from pipeline.training.loop import train_classifier
from pipeline.training.session import Session

BATCH = 64
HEDA_FRACTION = 0.4
ROUNDS = 3


class Point:
    """The work of each stage on ``count`` images of ``size`` pixels."""

    def __init__(self, count: int, size: int, options: argparse.Namespace, device: torch.device, folder: Path) -> None:
        self.count, self.size = count, size
        steps = count // options.batch_size
        networks = options.teacher, options.student
        self.setting = Setting(*networks, options.batch_size, size, steps, 0, device.type, str(folder))
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
        return self._timed(lambda: make_store(self._folder / "again", params))

    def _teach(self) -> float:
        params = self.setting.params().distill.training
        augmentation = data_params("imagefolder", self._folder, self.size).augmentation
        images = self.setting.images("train", augmentation=augmentation)
        few = self.setting.images("test")
        teacher = self.setting.network(self.setting.teacher)
        *_, last = train_classifier(teacher, images, few, params, 0, Session(self._device))
        return last.seconds

    def _score(self, storage: str) -> float:
        images = self.setting.images("train", storage)
        teacher = self.setting.network(self.setting.teacher).to(memory_format=torch.channels_last)
        return self._timed(lambda: score(teacher, images))

    def _group(self) -> float:
        energy = torch.randn(self.count)
        return self._timed(lambda: (EnergyGroups.fit(energy, 0.2, 0.2), select_subset(energy, HEDA_FRACTION)))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with train/<class>/<image>")
    parser.add_argument("--teacher", default="wrn_40_2", choices=models.available(), metavar="NETWORK")
    parser.add_argument("--student", default="wrn_16_2", choices=models.available(), metavar="NETWORK")
    parser.add_argument("--counts", type=int, nargs="+", default=[1280, 2560, 5120], help="images, at the first size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="pixels, at half the least count")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    run(parser, arguments, measure, report)


def measure(options: argparse.Namespace) -> Result:
    device, few = choose_device(options.device), min(options.counts) // 2
    wanted = [(count, options.sizes[0]) for count in options.counts] + [(few, size) for size in options.sizes]
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        points = [Point(*each, options, device, Path(root, str(place))) for place, each in enumerate(wanted)]
        arms = {(place, name): work for place, point in enumerate(points) for name, work in point.work.items()}
        samples = interleaved(arms, ROUNDS, "bench.scale")
    seconds = [{name: samples[place, name] for name in point.work} for place, point in enumerate(points)]
    rows = [
        {"images": count, "size": size, "seconds": {name: statistics.median(times) for name, times in measured.items()}}
        for (count, size), measured in zip(wanted, seconds, strict=True)
    ]
    networks = {"teacher": options.teacher, "student": options.student, "batch_size": options.batch_size}
    return {**networks, "device": device.type, "rows": rows, "all_seconds": seconds}


def report(result: Mapping[str, Any]) -> str:
    rows = result["rows"]
    head = ("work, seconds", *(f"{row['images']:,} of {row['size']} px" for row in rows))
    lines = ((name, *(f"{row['seconds'][name]:.3g}" for row in rows)) for name in rows[0]["seconds"])
    return f"""# Cost of each stage as the data grow

{result["teacher"]} to {result["student"]}, batch {result["batch_size"]}, on {result["device"]}; medians of {ROUNDS} \
interleaved rounds. T_E = {ENERGY_TEMPERATURE:g}; an epoch without its validation.

{table(head, lines)}

{machine_sentence(result["machine"])}

    {result["command"]}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
