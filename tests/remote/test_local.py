from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.remote import Address, run_bundle
from pipeline.artifacts import sha256_file


def test_a_whole_run_on_this_machine(bundle: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    out = tmp_path / "out"
    result = run_bundle(
        bundle,
        Address(folder=str(tmp_path / "device")),
        out,
        timeout_seconds=60,
        on_progress=lambda *step: steps.append(step),
    )
    assert json.loads((out / "result.json").read_text()) == result
    print(steps)
    print(json.dumps(result)[:1500])
