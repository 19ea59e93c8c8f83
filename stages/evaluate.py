"""Stage evaluate: accuracy of every exported file in its runtime on the test split, overall and per energy group."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.config import Params
from pipeline.data.loader import open_images
from pipeline.energy.groups import GROUP_NAMES
from pipeline.evaluation.accuracy import is_long_tailed, shot_groups, top1_correct
from pipeline.evaluation.candidates import candidates, check_available
from pipeline.evaluation.files import EvaluationSplit, evaluate_file
from pipeline.evaluation.reference import read_reference
from pipeline.runtimes import RuntimesError
from pipeline.store.paths import DATA, EVALUATION, EXPORT_MANIFEST
from pipeline.store.space import require_space
from pipeline.store.tables import write_json
from pipeline.training.inference import all_logits
from stages.common import progress, run

RUNTIMES_KEY = "params.yaml: evaluate.runtimes"


def evaluate(params: Params) -> None:
    check_available(params.evaluate.runtimes, RUNTIMES_KEY)
    chosen = candidates(EXPORT_MANIFEST, params.evaluate.runtimes, RUNTIMES_KEY)
    reference = read_reference()

    require_space(EVALUATION, 0, "the results")
    images, validation = (open_images(DATA, name, torch.device("cpu")) for name in ("test", "val"))
    correct = top1_correct(all_logits(reference.student, images).numpy(), images.labels.numpy())
    counts = np.asarray(reference.data["train_class_counts"])
    shots = shot_groups(counts, params.evaluate.many_shot_above, params.evaluate.few_shot_below)
    long_tail = is_long_tailed(counts)
    test = EvaluationSplit(images, validation, reference.groups, correct, shots if long_tail else None)
    rows = []
    with progress("evaluate", len(chosen), "file") as advance:
        for candidate in chosen:
            rows.append(evaluate_file(candidate, test, params.evaluate))
            advance(1)
    sizes = {name: int(np.sum(test.groups == code)) for code, name in GROUP_NAMES.items()}
    classes = {name: int(np.sum(members)) for name, members in shots.items()} if long_tail else None
    write_json(
        EVALUATION,
        {
            "schema": 1,
            "lineage": dict(reference.exported),
            "test_images": len(images),
            "group_sizes": sizes,
            "shot_classes": classes,
            "rows": rows,
        },
    )
    for row in rows:
        print(f"{row['name']:20} {row['runtime']:12} {row['precision_executed']:6} top-1 {row['top1']:.2%}")


if __name__ == "__main__":
    run(evaluate, RuntimesError)
