"""Memory of energy scoring for different numbers of images; it should not grow with them.

python -m bench.scoring_memory [--pixels P] [rows ...]          default: 32 pixels; 1000 50000 100000 200000 rows

Writes a store of each size whose manifest repeats a few hundred small JPEG files, and runs the stage score_energy on
it with resnet8 on the CPU, decoding the files. The files have 32 pixels a side and are scaled to --pixels; fewer pixels
take less time. Prints images, seconds, images/s, the peak resident memory of the scoring process, that of all its
decode workers together (sampled; shared memory is split between the processes), and the increase of both over the
smallest size.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

FILES, SIZE, CLASSES = 300, 32, 10
SIZES = (1_000, 50_000, 100_000, 200_000)
ROOT = Path(__file__).parent.parent
HELD_OUT = 10  # images of the splits that are not measured
_HASH = "0" * 64


def write_files(folder: Path) -> Path:
    import numpy as np  # noqa: PLC0415  measured processes must not import more than scoring does
    from PIL import Image  # noqa: PLC0415

    # paths as long as those of ImageNet in a home folder: their text is what a manifest holds
    deep = folder / "data/imagenet/ILSVRC/Data/CLS-LOC/train/n01440764"
    deep.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(FILES):
        pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(deep / f"n01440764_{number:08d}.JPEG")
    return deep


def write_run(folder: Path, files: Path, rows: int, pixels: int) -> None:
    """Write an untrained teacher, and a store of image files with ``rows`` training images out of ``files``."""
    import numpy as np  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from pipeline.store import documents  # noqa: PLC0415
    from pipeline.store.paths import DATA, DATA_CARD, PARAMS, TEACHER  # noqa: PLC0415
    from pipeline.training.card import card_facts, checkpoint_facts  # noqa: PLC0415
    from pipeline.training.weights import build_network, write_network  # noqa: PLC0415

    data = folder / DATA
    data.mkdir(parents=True)
    shutil.copy(ROOT / PARAMS, folder)
    names = sorted(path.name for path in files.iterdir())
    # every row has a different path, as in a real manifest: a file has 4,096 spellings of the same length
    spellings = ["".join("./" if number >> bit & 1 else "//" for bit in range(12)) for number in range(4096)]
    counts = {"train": rows, "val": HELD_OUT, "test": HELD_OUT}
    for split, count in counts.items():
        paths = [f"{files}/{spellings[row // FILES % 4096]}{names[row % FILES]}" for row in range(count)]
        pq.write_table(pa.table({"path": paths, "sha256": [_HASH] * count}), data / f"{split}_files.parquet")
        np.save(data / f"{split}_labels.npy", np.arange(count) % CLASSES)
    card = documents.DataCard(
        name="manifest",
        storage="files",
        class_names=[str(label) for label in range(CLASSES)],
        image=documents.ImageFormat(height=pixels, width=pixels, channels=3, resize="squash", interpolation="bilinear"),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        counts=documents.SplitCounts(**counts),
        train_class_counts=np.bincount(np.arange(rows) % CLASSES, minlength=CLASSES).tolist(),
        source="made for this measurement",
        licence="none",
        fingerprint=_HASH,
    ).write(data / DATA_CARD)
    facts = card_facts("teacher", "resnet8", card, {}) | checkpoint_facts(0.5)
    write_network(folder / TEACHER, build_network("resnet8", CLASSES, "teacher.network"), facts)


def measure(folder: Path) -> tuple[float, int, int]:
    """Seconds, peak bytes of the scoring process, and the largest sum of bytes over its workers."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    stage = [sys.executable, "-m", "stages.score_energy"]
    process = subprocess.Popen(stage, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peaks = [0]

    def watch() -> None:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                workers = psutil.Process(process.pid).children()
                peaks.append(sum(worker.memory_full_info().pss for worker in workers))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        sys.exit(f"scoring {folder} ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, max(peaks)


def main(sizes: list[int], pixels: int) -> None:
    print(f"{'images':>10} {'s':>7} {'images/s':>9} {'process MiB':>12} {'above':>7} {'workers MiB':>12} {'above':>7}")
    with tempfile.TemporaryDirectory() as name:
        # in a process of its own, because the peak of a child process starts at the memory of its parent
        in_child("--write", name, str(pixels), *map(str, sizes))
        base: tuple[int, int] | None = None
        for rows in sorted(sizes):
            seconds, process, workers = measure(Path(name, str(rows)))
            base = base or (process, workers)
            mib = [value / 2**20 for value in (process, process - base[0], workers, workers - base[1])]
            print(
                f"{rows:>10,} {seconds:>7.0f} {rows / seconds:>9.0f} {mib[0]:>12.0f} {mib[1]:>+7.0f} {mib[2]:>12.0f} "
                f"{mib[3]:>+7.0f}",
                flush=True,
            )


def in_child(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "bench.scoring_memory", *words], check=True)


def command(words: list[str]) -> None:
    match words:
        case ["--write", folder, pixels, *sizes]:
            files = write_files(Path(folder))
            for size in sizes:
                write_run(Path(folder, size), files, int(size), int(pixels))
        case _:
            parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
            parser.add_argument("--pixels", type=int, default=SIZE)
            parser.add_argument("rows", type=int, nargs="*", default=SIZES)
            arguments = parser.parse_args(words)
            main(list(arguments.rows), arguments.pixels)


if __name__ == "__main__":
    command(sys.argv[1:])
