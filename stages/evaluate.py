"""Stage evaluate: accuracy of every exported file in its runtime on the test split, overall and per energy group."""

from pipeline.config import Params
from pipeline.evaluation.evaluate import evaluate_files
from pipeline.evaluation.runnable import check_available, runnable_files
from pipeline.lineage import Run
from pipeline.runtimes import RuntimesError
from pipeline.store.paths import EVALUATION
from pipeline.store.space import require_space
from stages.common import run_stage
from stages.progress import progress

KEY = "params.yaml: evaluate.runtimes"


def evaluate(params: Params) -> None:
    run, runtimes = Run(), params.evaluate.runtimes
    check_available(runtimes, KEY)
    files = runnable_files(run, runtimes, KEY)
    require_space(EVALUATION, 0, "the results")
    with progress("evaluate", len(files), "file") as advance:
        evaluation = evaluate_files(run, files, params.evaluate, advance).write(EVALUATION)
    for row in evaluation.rows:
        print(f"{row.name:20} {row.runtime:12} {row.precision_executed:6} top-1 {row.accuracy.top1:.2%}")


if __name__ == "__main__":
    run_stage(evaluate, RuntimesError)
