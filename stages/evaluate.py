"""Stage evaluate: accuracy of a network's files in their runtimes on the test split, overall and per energy group."""

from pipeline.config import Params
from pipeline.evaluation.evaluate import evaluate_files
from pipeline.evaluation.runnable import check_available, runnable_files
from pipeline.lineage import Run
from pipeline.runtimes import RuntimesError
from pipeline.store.space import require_space
from stages.common import network_argument, run_stage
from stages.progress import progress

KEY = "params.yaml: evaluate.runtimes"


def evaluate(params: Params, name: str) -> None:
    network, runtimes = Run().network(name), params.evaluate.runtimes
    check_available(runtimes, KEY)
    files = runnable_files([network], runtimes, KEY)
    require_space(network.places.evaluation, 0, "the results")
    with progress(f"evaluate {name}", len(files), "file") as advance:
        evaluation = evaluate_files(network, files, params.evaluate, advance)
    for row in evaluation.rows:
        print(f"{row.name:20} {row.runtime:12} {row.precision_executed:6} top-1 {row.accuracy.top1:.2%}")


if __name__ == "__main__":
    run_stage(evaluate, RuntimesError, network=network_argument("stages.evaluate", __doc__))
