"""Small programs for the device's Python, sent as an argument of the command, so nothing must be installed there."""

import base64
import json
from pathlib import Path
from typing import Any

PREFLIGHT, INSTALL, FETCH = (
    Path(__file__).with_name(f"{name}.py.txt").read_text(encoding="utf-8") for name in ("preflight", "install", "fetch")
)


def words(script: str, **values: Any) -> list[str]:
    """Arguments of Python that run a script with the parameters ``P``. Base64 is safe to quote in every shell."""
    program = f"import json\nP = json.loads({json.dumps(json.dumps(values))})\n{script}"
    encoded = base64.b64encode(program.encode()).decode()
    return ["-c", f"import base64; exec(base64.b64decode('{encoded}'))"]
