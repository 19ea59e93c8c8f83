"""Stage benchmark: accuracy and latency of every exported file on this machine."""

from pipeline.config import Params
from pipeline.evaluation.measure import MeasurementRequest, in_short, measure
from pipeline.evaluation.runnable import check_available, runnable_files
from pipeline.lineage import Run
from pipeline.remote import Address
from pipeline.runtimes import RuntimesError
from pipeline.store.paths import BENCHMARK, BENCHMARK_SAMPLES, DEVICE_RUNS, PARAMS
from pipeline.store.space import require_space
from stages.common import run_stage
from stages.progress import counted
from stages.students import remove_unlisted_students

FOLDER = DEVICE_RUNS / "_this_machine"  # no device of targets/ can have this name
KEY = f"{PARAMS}: benchmark.runtimes"
PROCESS_SECONDS = 900.0
LIMIT_SECONDS = 24 * 3600.0  # for the whole benchmark; each of its processes has PROCESS_SECONDS


def benchmark(params: Params) -> None:
    remove_unlisted_students(params.students)
    run, settings = Run(students=params.students), params.benchmark
    check_available(settings.runtimes, KEY)
    wanted = MeasurementRequest(
        files=runnable_files(run.networks, settings.runtimes, KEY),
        settings=settings,
        key=str(PARAMS),
        address=Address(),
        folder=FOLDER,
        result=BENCHMARK,
        samples=BENCHMARK_SAMPLES,
        timeout_seconds=LIMIT_SECONDS,
        process_seconds=PROCESS_SECONDS,
    )
    require_space(BENCHMARK, 0, "the results")
    with counted("benchmark", "step") as on_progress:
        measured = measure(run, wanted, on_progress)
    print("\n".join(map(in_short, measured.rows)))


if __name__ == "__main__":
    run_stage(benchmark, RuntimesError)
