"""Small programs for the device's Python, sent as an argument of the command, so nothing must be installed there."""

import base64
import json
from pathlib import Path
from typing import Any

from pipeline.device.service.run_folder import MESSAGE

PREFLIGHT, INSTALL, FETCH = (
    Path(__file__).with_name(f"{name}.py.txt").read_text(encoding="utf-8") for name in ("preflight", "install", "fetch")
)

_SEND = f"""import json, sys

def send(**values):
    sys.stdout.write({MESSAGE!r} % json.dumps(values))
    sys.stdout.flush()

"""


def words(script: str, **values: Any) -> list[str]:
    """Arguments of Python that run a script with the parameters ``P`` and the function ``send``.

    Base64 is safe to quote in every shell. The present folder, in which a file json.py may lie, is not imported from.
    """
    program = f"{_SEND}P = json.loads({json.dumps(json.dumps(values))})\n{script}"
    encoded = base64.b64encode(program.encode()).decode()
    return [
        "-c",
        f"import sys; sys.path[:] = filter(None, sys.path); import base64; exec(base64.b64decode('{encoded}'))",
    ]
