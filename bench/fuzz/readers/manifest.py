"""Manifests of exported files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import HASH, ROOT, Json, as_json
from pipeline.config import load_params
from pipeline.evaluation.candidates import candidates
from pipeline.evaluation.measure import make_plan
from pipeline.store.tables import sha256_model

# one file of each format; an OpenVINO IR is two
_PARTS = {
    "student_fp32.onnx": b"onnx",
    "student_fp32.xml": b"xml",
    "student_fp32.bin": b"bin",
    "student_fp32.pt2": b"pt2",
}
_FORMATS = {".onnx": ("onnx", "onnxruntime"), ".xml": ("openvino", "openvino"), ".pt2": ("torch", "torch")}


def file_entry(name: str, sha256: str, role: str = "student") -> Json:
    """The entry of a file in the manifest."""
    form, runtime = _FORMATS[Path(name).suffix]
    return {
        "name": name,
        "role": role,
        "format": form,
        "precision": "fp32",
        "sha256": sha256,
        "size_bytes": 1000,
        "batch": None,
        "float_nodes": [],
        "parity": {
            "images": 8,
            "max_abs": 1e-5,
            "mean_abs": 1e-6,
            "cosine": 1.0,
            "top1_agreement": 1.0,
            "smallest_flipped_margin": None,
            "largest_flipped_margin": None,
            "energy_max_abs": 1e-5,
            "runtime": runtime,
            "executed_precision": "fp32",
        },
    }


def manifest_of(files: list[Json]) -> Json:
    lineage = dict.fromkeys(("data", "teacher", "energy", "student"), HASH)
    return {"schema": 1, "lineage": lineage, "opset": 18, "files": files}


def _manifest_seeds(scratch: Path) -> Json:
    for name, content in _PARTS.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_bytes(content)
    return manifest_of([file_entry(name, sha256_model(scratch / name)) for name in _PARTS if not name.endswith(".bin")])


def _write_manifest(rng: random.Random, seeds: Json, folder: Path) -> None:
    manifest = seeds
    if rng.randrange(2):
        files = list(seeds["files"])
        at = rng.randrange(len(files))
        files[at] = mutate_value(files[at], rng)
        manifest = seeds | {"files": files}
    else:
        manifest = mutate_value(seeds, rng)
    text = as_json(manifest)
    (folder / "export.json").write_bytes(mutate_bytes(text, rng) if rng.randrange(4) == 0 else text)
    for name, content in _PARTS.items():
        (folder / name).write_bytes(content)


def _read_manifest(folder: Path, seeds: Any) -> None:
    found = candidates(
        folder / "in/export.json", ["torch", "onnxruntime", "openvino"], "params.yaml: evaluate.runtimes"
    )
    for candidate in found:
        assert candidate.path.parent == folder / "in", "a file outside of its folder was let through"
    make_plan(found, _BENCHMARK, "params.yaml", 60).to_json()


_BENCHMARK = load_params(ROOT / "params.yaml").benchmark
TARGET = Target("manifest", "manifest of exported files", _manifest_seeds, _write_manifest, _read_manifest)
