"""Memory of energy scoring against the number of images: it should not grow with it.

python -m bench.scoring_memory [--pixels P] [rows ...]          default: 32 pixels; 1000 50000 100000 200000 rows

Writes a store of each size whose manifest names a few hundred small JPEG files over and over, and scores it with
resnet8 through the files path, each size in a fresh process: scoring, merging, groups and the table, as the stage does.
The files have 32 pixels a side; the network sees --pixels, of which fewer leave a slow machine more rows a minute.
Prints images, seconds, images/s, the peak resident memory of the scoring process and of all its decode workers at one
moment (sampled; memory that processes share is split between them), and both above the smallest size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FILES, SIZE, CLASSES = 300, 32, 10
SIZES = (1_000, 50_000, 100_000, 200_000)


def write_files(folder: Path) -> Path:
    import numpy as np  # noqa: PLC0415  a measured process imports only what scoring does
    from PIL import Image  # noqa: PLC0415

    # paths as long as those of ImageNet in a home folder: their text is what a manifest holds
    deep = folder / "data" / "imagenet" / "ILSVRC" / "Data" / "CLS-LOC" / "train" / "n01440764"
    deep.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(FILES):
        pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(deep / f"n01440764_{number:08d}.JPEG")
    return deep


def write_manifest(store: Path, files: Path, rows: int, pixels: int) -> None:
    """A store in the form of files with one split, ``train``, of ``rows`` images out of the folder ``files``."""
    import numpy as np  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    store.mkdir()
    names = sorted(path.name for path in files.iterdir())
    # a text of its own for each row, as in a real manifest: the same file by one of 4,096 spellings of the same length
    spellings = ["".join("./" if number >> bit & 1 else "//" for bit in range(12)) for number in range(4096)]
    paths = [f"{files}/{spellings[row // FILES % 4096]}{names[row % FILES]}" for row in range(rows)]
    pq.write_table(pa.table({"path": paths, "sha256": ["0" * 64] * rows}), store / "train_files.parquet")
    np.save(store / "train_labels.npy", np.arange(rows) % CLASSES)
    card = {
        "name": "manifest",
        "source": "made for this measurement",
        "licence": None,
        "fingerprint": "0" * 64,
        "counts": {"train": rows, "val": 0, "test": 0},
        "train_class_counts": np.bincount(np.arange(rows) % CLASSES, minlength=CLASSES).tolist(),
        "class_names": [str(label) for label in range(CLASSES)],
        "image_size": pixels,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    (store / "data.json").write_text(json.dumps(card))


def score(store: Path) -> None:
    import torch  # noqa: PLC0415

    import models  # noqa: PLC0415
    from pipeline.data.loader import open_images  # noqa: PLC0415
    from pipeline.energy.groups import EnergyGroups  # noqa: PLC0415
    from pipeline.energy.scoring import score_images, write_scores  # noqa: PLC0415

    torch.manual_seed(0)
    teacher = models.build("resnet8", CLASSES).to(memory_format=torch.channels_last)
    parts = score_images(teacher, open_images(store, "train", torch.device("cpu")), 4.0, store / "parts")
    groups = EnergyGroups.fit(parts.energy(), 0.2, 0.2)
    write_scores(store / "energy.parquet", parts, groups.codes, {})


def children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def memory(process: int, field: str) -> int:
    """Bytes: ``Rss`` of a process, or ``Pss``, its share of what it holds together with others; 0 if it is gone."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith(f"{field}:"))


def measure(store: Path) -> tuple[float, int, int]:
    """Seconds, peak bytes of the scoring process, and the largest sum over its workers."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bench.scoring_memory", "--score", str(store)])
    peaks = [0]

    def watch() -> None:
        while process.poll() is None:
            peaks.append(sum(memory(child, "Pss") for child in children(process.pid)))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        sys.exit(f"scoring {store} ended with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, max(peaks)


def main(sizes: list[int], pixels: int) -> None:
    print(f"{'images':>10} {'s':>7} {'images/s':>9} {'process MiB':>12} {'above':>7} {'workers MiB':>12} {'above':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder)
        base: tuple[int, int] | None = None
        for rows in sorted(sizes):
            store = folder / str(rows)
            # in a process of its own: the peak of a child begins with what its parent held when it was started
            command = [sys.executable, "-m", "bench.scoring_memory", "--write", str(store), str(files), str(pixels)]
            subprocess.run([*command, str(rows)], check=True)
            seconds, process, workers = measure(store)
            base = base or (process, workers)
            mib = [value / 2**20 for value in (process, process - base[0], workers, workers - base[1])]
            print(
                f"{rows:>10,} {seconds:>7.0f} {rows / seconds:>9.0f} {mib[0]:>12.0f} {mib[1]:>+7.0f} {mib[2]:>12.0f} "
                f"{mib[3]:>+7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--score"]:
        score(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--write"]:
        write_manifest(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[5]), int(sys.argv[4]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--pixels", type=int, default=SIZE)
        parser.add_argument("rows", type=int, nargs="*", default=SIZES)
        arguments = parser.parse_args()
        main(list(arguments.rows), arguments.pixels)
