"""One pass over one variant in a process of its own: ``python -m pipeline.device.benchmark.worker``.

Reads a job as JSON on standard input and writes the measurement as JSON to the job's ``output``, in one piece, or to
standard output where ``output`` is null. What goes wrong is one sentence on standard error and an exit code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.device.benchmark.passes import PASSES
from pipeline.device.errors import DeviceError
from pipeline.runtimes.errors import ModelFileError, PrecisionError, RuntimesError, RuntimeUnavailableError

EXIT_FAILED = 2
EXIT_UNAVAILABLE = 3
EXIT_MODEL_FILE = 4


def main() -> int:
    """Exit code: 0, or one of the EXIT_ codes after one sentence on standard error."""
    try:
        job = json.load(sys.stdin)
        result = json.dumps(PASSES[job["pass"]](job))
        if job["output"] is None:
            sys.stdout.write(result)
        else:
            output = Path(job["output"])
            partial = output.with_name(output.name + ".partial")
            partial.write_text(result, encoding="utf-8")
            partial.replace(output)
    except RuntimeUnavailableError as error:
        return _fail(error, EXIT_UNAVAILABLE)
    except (ModelFileError, PrecisionError) as error:
        return _fail(error, EXIT_MODEL_FILE)
    except (RuntimesError, DeviceError, OSError, ValueError) as error:
        return _fail(error, EXIT_FAILED)
    return 0


def _fail(error: Exception, code: int) -> int:
    own = isinstance(error, (RuntimesError, DeviceError))
    text = str(error) if own else f"{type(error).__name__}: {error}"
    sys.stderr.write(" ".join(text.split()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
