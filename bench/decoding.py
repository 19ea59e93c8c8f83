"""Decoding image files ahead of the consumer: threads against the worker processes of torch's DataLoader.

python -m bench.decoding [--tiny <folder of 64x64 JPEG files>] [--images 5000] [--workers 2] [--rounds 5]

Without --tiny, 64x64 files are made up like the 500x375 ones. Prints one table of images/s, medians of interleaved
rounds: a whole pass including the start of the workers, and from the first batch on. The last rows feed training steps
of resnet8 (batch 64, bf16 off), which share the interpreter with the threads.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import models
from pipeline.data import pixels
from pipeline.data.image_files import decode_at
from pipeline.data.pixels import StreamedPixels

BATCH = 64
CPU = torch.device("cpu")


class Files(Dataset):
    def __init__(self, paths: list[str], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(decode_at(self.paths[index], self.size)))


def processes(paths: list[str], size: int, workers: int, context: str) -> Iterator[Tensor]:
    order = [index.tolist() for index in torch.arange(len(paths)).split(BATCH)]
    yield from DataLoader(
        Files(paths, size),
        batch_sampler=order,
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=torch.stack,
        multiprocessing_context=context,
    )


def threads(paths: list[str], size: int, workers: int) -> Iterator[Tensor]:
    pixels.MOST_WORKERS = workers
    for images, _ in StreamedPixels(paths, size, CPU, 0).fetch(torch.arange(len(paths)).split(BATCH)):
        yield images


def trainer(size: int) -> Callable[[Tensor], None]:
    network = models.build("resnet8", 200).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, fused=True)

    def step(images: Tensor) -> None:
        optimizer.zero_grad()
        batch = images.permute(0, 3, 1, 2).float().div(255)
        F.cross_entropy(network(batch), torch.zeros(len(images), dtype=torch.int64)).backward()
        optimizer.step()

    return step


def pass_over(batches: Iterator[Tensor], count: int, step: Callable[[Tensor], None]) -> tuple[float, float]:
    """Images/s of the whole pass, and from the first batch on."""
    start = time.perf_counter()
    step(next(batches))
    first = time.perf_counter()
    for images in batches:
        step(images)
    end = time.perf_counter()
    return count / (end - start), (count - BATCH) / (end - first)


def photographs(folder: Path, width: int, height: int, count: int) -> list[str]:
    """Smooth colours with some grain: JPEG files of about the size that photographs have."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = generator.normal(0, 12, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    return [str(path) for path in sorted(folder.iterdir())]


def main(arguments: argparse.Namespace) -> None:
    workers, count = arguments.workers, arguments.images
    with tempfile.TemporaryDirectory() as folder:
        large = photographs(Path(folder) / "large", 500, 375, 200)
        small = [str(path) for path in sorted(arguments.tiny.rglob("*.JPEG"))] if arguments.tiny else None
        small = small or photographs(Path(folder) / "small", 64, 64, 1000)
        cases = {
            "64x64 at 64": (small, 64, lambda images: None),
            "500x375 at 224": (large, 224, lambda images: None),
            "64x64 at 64, training": (small, 64, trainer(64)),
        }
        print(f"{count} images, batch {BATCH}, {workers} workers, median of {arguments.rounds} rounds, images/s")
        print(f"{'files':24}{'decoded by':20}{'whole pass':>12}{'ratio':>8}{'after start':>14}{'ratio':>8}")
        for name, (files, size, step) in cases.items():
            paths = list(itertools.islice(itertools.cycle(files), count))
            ways: dict[str, Callable[[], Iterator[Tensor]]] = {
                "forked processes": lambda p=paths, s=size: processes(p, s, workers, "fork"),
                "spawned processes": lambda p=paths, s=size: processes(p, s, workers, "spawn"),
                "threads": lambda p=paths, s=size: threads(p, s, workers),
            }
            samples: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(arguments.rounds):
                for way, make in ways.items():
                    samples[way].append(pass_over(make(), count, step))
            medians = {way: [statistics.median(part) for part in zip(*s, strict=True)] for way, s in samples.items()}
            base = medians["forked processes"]
            for way, (whole, after) in medians.items():
                print(f"{name:24}{way:20}{whole:12.0f}{whole / base[0]:8.2f}{after:14.0f}{after / base[1]:8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
