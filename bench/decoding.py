"""Decoding image files ahead of the consumer: the forked processes of the pipeline, spawned ones, and threads.

python -m bench.decoding [--tiny <folder of 64x64 JPEG files>] [--images 5000] [--workers 2] [--rounds 5]

Without --tiny, 64x64 files are made up like the 500x375 ones. Prints one table of images/s, medians of interleaved
rounds: of a whole pass with the start of the workers, and from the first batch on; ratios are to forked processes.
Run it on an idle machine: beside other work, where there is no second core to win, threads look better than they are.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data import pixels
from pipeline.data.image_files import decode_at
from pipeline.data.pixels import StreamedPixels

BATCH = 64
PART = 8  # images that a thread decodes in one go
AHEAD = 4  # batches


class Files(Dataset):
    def __init__(self, paths: list[str], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(decode_at(self.paths[index], self.size))


def forked(paths: list[str], size: int, workers: int) -> Iterator[Tensor]:
    """As the pipeline does it."""
    pixels.MOST_WORKERS = workers
    streamed = StreamedPixels(paths, size, torch.device("cpu"), 0)
    for images, _ in streamed.fetch(torch.arange(len(paths)).split(BATCH)):
        yield images


def spawned(paths: list[str], size: int, workers: int) -> Iterator[Tensor]:
    yield from DataLoader(
        Files(paths, size),
        batch_sampler=[index.tolist() for index in torch.arange(len(paths)).split(BATCH)],
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=torch.stack,
        multiprocessing_context="spawn",
    )


def threads(paths: list[str], size: int, workers: int) -> Iterator[Tensor]:
    def decode(into: Tensor, part: list[str]) -> None:
        target = into.numpy()
        for place, path in enumerate(part):
            target[place] = decode_at(path, size)

    waiting: deque[tuple[Tensor, list[Future]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            images = torch.empty((len(batch), size, size, 3), dtype=torch.uint8)
            parts = [(images[i : i + PART], batch[i : i + PART]) for i in range(0, len(batch), PART)]
            waiting.append((images, [pool.submit(decode, *part) for part in parts]))
            if len(waiting) > AHEAD:
                yield whole(*waiting.popleft())
        while waiting:
            yield whole(*waiting.popleft())


def whole(images: Tensor, parts: list[Future]) -> Tensor:
    for part in parts:
        part.result()
    return images


WAYS: dict[str, Callable[[list[str], int, int], Iterator[Tensor]]] = {
    "forked processes": forked,
    "spawned processes": spawned,
    "threads": threads,
}


def speeds(batches: Iterator[Tensor], count: int) -> tuple[float, float]:
    """Images/s of the whole pass, and from the first batch on."""
    start = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    for _ in batches:
        pass
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


def main(tiny: Path | None, count: int, workers: int, rounds: int) -> None:
    torch.set_num_threads(1)  # the consumer does next to nothing, and its threads would wait for each other
    with tempfile.TemporaryDirectory() as folder:
        large = photographs(Path(folder) / "large", 500, 375, 200)
        found = [str(path) for path in sorted(tiny.rglob("*.JPEG"))] if tiny else []
        small = found or photographs(Path(folder) / "small", 64, 64, 1000)
        print(f"{count} images, batch {BATCH}, {workers} workers, median of {rounds} rounds, images/s")
        print(f"{'files':18}{'decoded by':20}{'whole pass':>12}{'ratio':>8}{'after start':>14}{'ratio':>8}")
        for name, files, size in (("64x64 at 64", small, 64), ("500x375 at 224", large, 224)):
            paths = list(itertools.islice(itertools.cycle(files), count))
            samples: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, make in WAYS.items():
                    samples[way].append(speeds(make(paths, size, workers), count))
            medians = {way: [statistics.median(part) for part in zip(*s, strict=True)] for way, s in samples.items()}
            base = medians["forked processes"]
            for way, (total, after) in medians.items():
                print(f"{name:18}{way:20}{total:12.0f}{total / base[0]:8.2f}{after:14.0f}{after / base[1]:8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.tiny, arguments.images, arguments.workers, arguments.rounds)
