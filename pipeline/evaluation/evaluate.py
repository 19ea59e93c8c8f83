"""Accuracy of every exported file of a network in its runtime on the test split, compared with the torch network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import runtimes
from pipeline.config import EvaluateParams
from pipeline.data.loader import Images, open_images
from pipeline.data.normalisation import Normalisation
from pipeline.energy.groups import energy_score
from pipeline.evaluation.accuracy import (
    balanced_accuracy,
    expected_calibration_error,
    is_long_tailed,
    shot_accuracy,
    shot_groups,
)
from pipeline.evaluation.routing import route, softmax_uncertainty
from pipeline.evaluation.runnable import RunnableFile
from pipeline.lineage import NetworkRun, Run
from pipeline.portable.accuracy import GROUPS, Expected, Outputs, score, top1_correct
from pipeline.portable.files import sha256_file
from pipeline.store.answers import Answers, FileAnswers, SplitAnswers
from pipeline.store.documents import EvaluatedRow, Evaluation, Routing
from pipeline.training.inference import all_logits
from pipeline.training.weights import read_network

_CPU = torch.device("cpu")


def expected_of(run: Run, logits: Tensor, labels: NDArray[Any], index: NDArray[Any] | slice = slice(None)) -> Expected:
    """Reference outputs for the test images ``index``, from the ``logits`` [N, K] of the torch network."""
    scores = run.energy_test
    energy = energy_score(logits, scores.lineage.temperature)
    return Expected(logits.numpy(), energy.numpy(), labels, scores.columns["group"][index])


@dataclass(frozen=True)
class EvaluatedSplit:
    """Images and reference outputs for the evaluation of all files.

    Attributes:
        images: N test images, on the CPU.
        validation: validation images, on the CPU, for the routing thresholds.
        expected: reference outputs of the torch network for the N images.
        shots: many-, medium- and few-shot classes, name -> bool [K]; None unless the training split is long-tailed.
    """

    images: Images
    validation: Images
    expected: Expected
    shots: dict[str, NDArray[np.bool_]] | None


def evaluate_files(
    network: NetworkRun, files: Sequence[RunnableFile], params: EvaluateParams, on_file: Callable[[int], None]
) -> Evaluation:
    """Evaluate the files one by one, and write the answers to each image and then the evaluation.

    Raises:
        DataError, LineageError: an artifact of the run is damaged or from another run.
        RuntimesError: a runtime cannot load or run a file.
    """
    run, card, places = network.run, network.card, network.places
    trained, normalisation = read_network(places.weights, card), Normalisation.of(card)
    images, validation = (open_images(run.places.data, name, _CPU, normalisation) for name in ("test", "val"))
    counts = np.asarray(run.data.train_class_counts)
    shots = shot_groups(counts, params.many_shot_above, params.few_shot_below) if is_long_tailed(counts) else None
    expected = expected_of(run, all_logits(trained, images), images.labels.numpy())
    of_network = FileAnswers(_torch_answers(run, trained, validation), split_answers(expected, expected.labels))
    test, rows, answers = EvaluatedSplit(images, validation, expected, shots), [], {}
    for file in files:
        row, answers[file.file.name, file.runtime] = evaluate_file(file, test, params)
        rows.append(row)
        on_file(1)
    Answers(of_network, answers).write(places.answers)
    return Evaluation(
        lineage=network.made_from,
        answers_sha256=sha256_file(places.answers),
        test_images=len(images),
        group_sizes={name: int(np.sum(expected.groups == code)) for name, code in GROUPS.items()},
        shot_classes=None if shots is None else {name: int(np.sum(members)) for name, members in shots.items()},
        rows=rows,
    ).write(places.evaluation)


def split_answers(outputs: Outputs | Expected, labels: NDArray[np.int64]) -> SplitAnswers:
    """What the report needs of the outputs for N images with ``labels`` [N].

    Args:
        outputs: with energies.
    """
    assert outputs.energy is not None  # noqa: S101  the export checked it
    uncertainty = softmax_uncertainty(outputs.logits).astype(np.float32)
    return SplitAnswers(top1_correct(outputs.logits, labels), outputs.energy, uncertainty)


def _torch_answers(run: Run, network: nn.Module, images: Images) -> SplitAnswers:
    logits = all_logits(network, images)
    outputs = Outputs(logits.numpy(), energy_score(logits, run.energy_test.lineage.temperature).numpy())
    return split_answers(outputs, images.labels.numpy())


def evaluate_file(file: RunnableFile, test: EvaluatedSplit, params: EvaluateParams) -> tuple[EvaluatedRow, FileAnswers]:
    """Evaluate accuracy, calibration, routing and executed precision of one file.

    Raises:
        RuntimesError: the runtime cannot load or run the file.
    """
    exported = file.file
    runtime = runtimes.load(file.runtime, file.path, precision=exported.precision)
    outputs = _outputs(runtime, test.images, exported.batch or params.batch_size, exported.batch)
    validation = _outputs(runtime, test.validation, exported.batch or params.batch_size, exported.batch)
    executed, labels = runtime.executed(), test.expected.labels
    try:
        accuracy = score(outputs, test.expected)
    except ValueError as error:
        raise runtimes.RuntimesError(f"{file.path} in {file.runtime}: {error}; export it again.") from None
    answers = FileAnswers(split_answers(validation, test.validation.labels.numpy()), split_answers(outputs, labels))
    val, correct, wanted = answers.val, answers.test.correct, params.on_device_top1
    row = EvaluatedRow(
        name=exported.name,
        runtime=file.runtime,
        sha256=exported.sha256,
        precision_executed=executed.precision,
        precision_mismatch=runtimes.check_executed(exported.precision, executed),
        provider=executed.provider,
        runtime_version=executed.version,
        accuracy=accuracy,
        balanced_accuracy=balanced_accuracy(correct, labels),
        shots=None if test.shots is None else shot_accuracy(correct, labels, test.shots),
        ece=expected_calibration_error(outputs.logits, labels),
        routing=Routing(
            wanted_top1=wanted,
            energy=route((val.energy, val.correct), (answers.test.energy, correct), wanted),
            max_softmax=route((val.uncertainty, val.correct), (answers.test.uncertainty, correct), wanted),
        ),
    )
    return row, answers


def _outputs(runtime: runtimes.Runtime, images: Images, size: int, batch: int | None) -> Outputs:
    parts = (runtimes.run_padded(runtime, part.images.numpy(), batch) for part in images.batches(size))
    return runtimes.joined(parts)
