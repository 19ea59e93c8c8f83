"""Stage benchmark: accuracy and latency of every exported file on this machine."""

from __future__ import annotations

from pipeline.config import Params
from pipeline.evaluation.candidates import candidates, check_available
from pipeline.evaluation.measure import lines, measure, write_measurement
from pipeline.remote import Address
from pipeline.runtimes import RuntimesError
from pipeline.store.paths import BENCHMARK, BENCHMARK_SAMPLES, DEVICE_RUNS, EXPORT_MANIFEST
from pipeline.store.space import require_space
from stages.common import counted, run

FOLDER = DEVICE_RUNS / "_this_machine"  # no device of targets/ can have this name
KEY = "params.yaml"
RUNTIMES_KEY = f"{KEY}: benchmark.runtimes"
PROCESS_SECONDS = 900.0
LIMIT_SECONDS = 24 * 3600.0  # the processes have theirs; this one is for what nobody thought of


def benchmark(params: Params) -> None:
    settings = params.benchmark
    check_available(settings.runtimes, RUNTIMES_KEY)
    chosen = candidates(EXPORT_MANIFEST, settings.runtimes, RUNTIMES_KEY)
    require_space(BENCHMARK, 0, "the results")
    with counted("benchmark", "step") as on_progress:
        measured = measure(
            chosen,
            settings,
            Address(),
            FOLDER,
            key=KEY,
            timeout_seconds=LIMIT_SECONDS,
            process_seconds=PROCESS_SECONDS,
            on_progress=on_progress,
        )
    write_measurement(measured, FOLDER, BENCHMARK, BENCHMARK_SAMPLES)
    print("\n".join(lines(measured)))


if __name__ == "__main__":
    run(benchmark, RuntimesError)
