"""Stage measure: accuracy and latency of exported files on a device of targets/, as its device.yaml asks for.

python -m stages.measure NAME
"""

from __future__ import annotations

import argparse

from pipeline.evaluation.candidates import candidates
from pipeline.evaluation.measure import lines, measure, write_measurement
from pipeline.store.paths import DEVICE_RUNS, EXPORT_MANIFEST
from pipeline.target_config import find_target
from pipeline.targets import device_file, result_file, samples_file
from stages.common import counted, run_program

PROCESS_SECONDS = 900.0  # at least, for one process: a slow device builds an engine for as long


def measure_device(name: str) -> None:
    target = find_target(name)
    key = str(device_file(name))
    chosen = candidates(EXPORT_MANIFEST, target.benchmark.runtimes, f"{key}: benchmark.runtimes", target.files)
    folder = DEVICE_RUNS / name
    limit = 60 * target.timeout_minutes
    with counted(name, "step") as on_progress:
        measured = measure(
            chosen,
            target.benchmark,
            target.address.address(),
            folder,
            key=key,
            timeout_seconds=limit,
            process_seconds=min(limit, max(limit / 4, PROCESS_SECONDS)),
            on_progress=on_progress,
        )
    write_measurement(measured, folder, result_file(name), samples_file(name))
    print("\n".join(lines(measured)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.measure", description=__doc__)
    parser.add_argument("name", help="folder in targets/")
    arguments = parser.parse_args()
    run_program(lambda: measure_device(arguments.name))


if __name__ == "__main__":
    main()
