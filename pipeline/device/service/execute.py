"""Measures a bundle on this device and writes the result."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.device.errors import DeviceError
from pipeline.device.service.bundle import Bundle, extract
from pipeline.device.service.run_folder import RESULT, SAMPLES
from pipeline.portable.files import atomic_file

if TYPE_CHECKING:  # the import needs numpy, and a missing numpy must give an error sentence
    from pipeline.portable.documents import Result

RESULT_FORMAT = 1
T = TypeVar("T")


def execute(
    bundle: Bundle, sha256: str, files: Path, out: Path, on_progress: Callable[[int, int, str], None]
) -> Result:
    """Verify, extract and measure a bundle; write samples.npz and then result.json, each atomically.

    In result.json, paths are relative to the bundle, "~" replaces the home folder, and null replaces NaN and infinity.

    Args:
        sha256: SHA-256 of the bundle.
        files: folder to extract to; must not exist.
        out: folder of the result.
        on_progress: called with finished steps, all steps (0: unknown yet) and the label of the next step.
    """
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "numpy":
            raise
        raise DeviceError("numpy is not installed for this Python; install it with `pip install numpy`.") from None
    from pipeline.device.benchmark.runner import run_benchmark

    out.mkdir(parents=True, exist_ok=True)
    on_progress(0, 0, "verifying the bundle")
    files = files.resolve()  # workers get resolved paths, and their messages contain them
    plan = extract(bundle, files)
    result, samples = run_benchmark(plan, on_progress)
    result = dataclasses.replace(result, bundle_sha256=sha256, card=dict(bundle.card))
    result = without_paths(result, files)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **samples)  # type: ignore[arg-type]
    text = json.dumps({"format": RESULT_FORMAT, **dataclasses.asdict(result)}, indent=2, allow_nan=False) + "\n"
    for name, content in ((SAMPLES, buffer.getvalue()), (RESULT, text.encode())):
        with atomic_file(out / name) as temporary:
            temporary.write_bytes(content)
    return result


def without_paths(value: T, files: Path) -> T:
    """Return a copy without the path ``files`` and numbers that are not finite, and with "~" for the home folder, whose
    name often is the name of the user."""
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises for a user without one
    pattern = re.compile(re.escape(home) + r"(?![\w.-])") if len(Path(home).parts) > 1 else None

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            value = value.replace(f"{files}/", "")
            return pattern.sub("~", value) if pattern else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(value, **{key: cleaned(item) for key, item in vars(value).items()})
        if isinstance(value, dict):
            return {cleaned(key): cleaned(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [cleaned(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    result: T = cleaned(value)
    return result
