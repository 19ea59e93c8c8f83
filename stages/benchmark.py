"""Stage benchmark: latency of every exported file on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline.artifacts import atomic_file, write_json
from pipeline.candidates import candidates
from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.device import DeviceError, Plan, Variant, run_benchmark
from pipeline.layout import BENCHMARK, BENCHMARK_SAMPLES, DATA, EXPORT_MANIFEST
from pipeline.runtimes import RuntimesError
from stages.common import run

INPUT_IMAGES = 64


def benchmark(params: Params) -> None:
    settings = params.benchmark
    chosen = {
        candidate.name: candidate for candidate in candidates(EXPORT_MANIFEST, settings.runtimes, "benchmark.runtimes")
    }
    variants = tuple(
        Variant(name, candidate.runtime, str(candidate.path), candidate.file["precision"], settings.batch_size)
        for name, candidate in chosen.items()
    )
    images = open_images(DATA, "test", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder, tqdm(desc="benchmark", unit="round", dynamic_ncols=True) as bar:
        inputs = Path(folder) / "inputs.npy"
        index = torch.arange(min(INPUT_IMAGES, len(images)))
        np.save(inputs, images.centre(index).contiguous().numpy())

        def on_progress(done: int, total: int, label: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(label)

        plan = Plan(variants, str(inputs), **settings.model_dump(exclude={"runtimes", "batch_size"}))
        result = run_benchmark(plan, on_progress)

    # a variant's name is unique in the plan; the report joins rows by file and runtime
    rows = [
        variant | {key: chosen[variant["name"]].file[key] for key in ("name", "role", "format", "sha256")}
        for variant in result["variants"]
    ]
    with atomic_file(BENCHMARK_SAMPLES) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **result["samples_ns"])
    write_json(
        BENCHMARK,
        {
            "schema": 1,
            "device": result["device"],
            "machine": result["provenance"],
            "settings": settings.model_dump(mode="json") | {"input_images": len(index)},
            "rows": rows,
        },
    )
    for row in rows:
        latency = row["error"] or f"p50 {row['latency_p50_ms']:.3f} ms, {row['verdict']}"
        print(f"{row['name']:20} {row['runtime']:12} {latency}")


if __name__ == "__main__":
    run(benchmark, RuntimesError, DeviceError)
