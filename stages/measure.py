"""Stage measure: accuracy and latency of exported files on a device of targets/, with the settings of its device.yaml.

python -m stages.measure NAME
"""

from pipeline.config import load_params
from pipeline.evaluation.measure import MeasurementRequest, in_short, measure
from pipeline.evaluation.runnable import runnable_files
from pipeline.lineage import Run
from pipeline.store.paths import DEVICE_RUNS
from pipeline.targets import device_files, find_target
from stages.common import device_argument, run_program
from stages.progress import counted
from stages.students import remove_unlisted_students

PROCESS_SECONDS = 900.0  # smallest limit of one process, because a slow device may build an engine for so long


def measure_device(name: str) -> None:
    target, students, (settings, result, samples) = find_target(name), load_params().students, device_files(name)
    remove_unlisted_students(students)
    run = Run(students=students)
    limit = 60 * target.timeout_minutes
    wanted = MeasurementRequest(
        files=runnable_files(run.networks, target.benchmark.runtimes, f"{settings}: benchmark.runtimes", target.files),
        settings=target.benchmark,
        key=str(settings),
        address=target.address.address(),
        folder=DEVICE_RUNS / name,
        result=result,
        samples=samples,
        timeout_seconds=limit,
        process_seconds=min(limit, max(limit / 4, PROCESS_SECONDS)),
    )
    with counted(name, "step") as on_progress:
        measured = measure(run, wanted, on_progress)
    print("\n".join(map(in_short, measured.rows)))


if __name__ == "__main__":
    device = device_argument("stages.measure", __doc__)
    run_program(lambda: measure_device(device), log="measure")
