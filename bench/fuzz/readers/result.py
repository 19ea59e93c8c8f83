"""Results of devices, and the index of them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import Json, as_json
from pipeline.config import BudgetParams
from pipeline.report.devices import on_device, read_devices
from pipeline.report.page_devices import device_sections

_SHA = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("student_fp32.onnx", "teacher_fp32.onnx")}


DOCUMENT = Path(__file__).parent.parent / "result.json"


def _result_seeds(scratch: Path) -> Json:
    document = json.loads(DOCUMENT.read_text(encoding="utf-8"))
    files = [
        {
            **{key: row[key] for key in ("name", "role", "format", "precision", "sha256", "size_bytes")},
            "batch": None,
        }
        for row in document["rows"]
    ]
    budget = dict.fromkeys(BudgetParams.model_fields) | {"max_size_mb": 1.0}
    return {"document": document, "files": files, "budget": budget}


def _write_result(rng: random.Random, seeds: Json, folder: Path) -> None:
    document = seeds["document"]
    if rng.randrange(8):  # a plot takes longer than all the rest, so most cases have none
        document = document | {"rows": [row | {"sustained": None} for row in document["rows"]]}
    text = as_json(mutate_value(document, rng))
    if rng.randrange(4) == 0:
        text = mutate_bytes(text, rng)
    index: Any = {"board": {"result_sha256": hashlib.sha256(text).hexdigest(), "budget": seeds["budget"]}}
    if rng.randrange(6) == 0:
        index = mutate_value(index, rng)
    (folder / "targets/board").mkdir(parents=True)
    (folder / "targets/board/result.json").write_bytes(text)
    (folder / "targets/results.json").write_bytes(as_json(index))


def _read_result(folder: Path, seeds: Json) -> None:
    devices = [on_device(device, seeds["files"]) for device in read_devices(folder / "in")]
    for device in devices:
        json.dumps([device.entry, device.rows], allow_nan=False, ensure_ascii=False).encode()  # as files are written
    device_sections(devices)


TARGET = Target("result", "result of a device and the index", _result_seeds, _write_result, _read_result)
