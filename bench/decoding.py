"""Speed of decoding image files ahead of the consumer: the pipeline's forked processes against threads.

python -m bench.decoding [--tiny <folder of 64x64 JPEG files>] [--images 5000] [--workers 2] [--rounds 5]

Without --tiny, the 64x64 files are generated like the 500x375 ones. Prints images/s of a whole pass, as medians of
interleaved rounds, and their ratio to forked processes. Run it on an idle machine: if other work keeps the second core
busy, threads look better than they are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.common import interleaved, table
from pipeline.data import pixels
from pipeline.data.image_files import decode_at
from pipeline.store.documents import ImageFormat

BATCH = 64
PART = 8  # images that a thread decodes at a time
AHEAD = 4  # batches


def square(size: int) -> ImageFormat:
    return ImageFormat(height=size, width=size, channels=3, resize="squash", interpolation="bilinear")


def forked(paths: list[str], size: int, workers: int) -> Iterator[Tensor]:
    """Decode in forked processes, as the pipeline does."""
    pixels.MOST_WORKERS = workers
    streamed = pixels.StreamedPixels(paths, square(size), torch.device("cpu"), 0)
    for images, _ in streamed.fetch(torch.arange(len(paths)).split(BATCH)):
        yield images


def threads(paths: list[str], size: int, workers: int) -> Iterator[Tensor]:
    def decode(into: Tensor, part: list[str]) -> None:
        target = into.numpy()
        for place, path in enumerate(part):
            target[place] = decode_at(path, square(size))

    def whole(images: Tensor, parts: list[Future[None]]) -> Tensor:
        for part in parts:
            part.result()
        return images

    waiting: deque[tuple[Tensor, list[Future[None]]]] = deque()
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


WAYS = {"forked processes": forked, "threads": threads}


def photographs(folder: Path, width: int, height: int, count: int) -> list[str]:
    """Write JPEG files of smooth colours with noise, about as large as those of photographs, and return their paths."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = generator.normal(0, 12, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    return [str(path) for path in sorted(folder.iterdir())]


def speed(way: str, paths: list[str], size: int, workers: int) -> float:
    """Images/s of a whole pass."""
    start = time.perf_counter()
    for _ in WAYS[way](paths, size, workers):
        pass
    return len(paths) / (time.perf_counter() - start)


def main(tiny: Path | None, images: int, workers: int, rounds: int) -> None:
    torch.set_num_threads(1)  # the consumer does next to nothing, and its threads would wait for each other
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = [str(path) for path in sorted(tiny.rglob("*.JPEG"))] if tiny else []
        small = small or photographs(folder / "small", 64, 64, 1000)
        kinds = {"64x64 at 64": (small, 64), "500x375 at 224": (photographs(folder / "large", 500, 375, 200), 224)}
        for kind, (files, size) in kinds.items():
            paths = list(islice(cycle(files), images))
            samples = interleaved({way: partial(speed, way, paths, size, workers) for way in WAYS}, rounds)
            medians = {way: statistics.median(found) for way, found in samples.items()}
            base = medians["forked processes"]
            rows += [(kind, way, f"{median:.0f}", f"{median / base:.2f}") for way, median in medians.items()]
    print(f"{images} images, batch {BATCH}, {workers} workers, median of {rounds} rounds\n")
    print(table(("files", "decoded by", "images/s", "ratio"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    main(**vars(parser.parse_args()))
