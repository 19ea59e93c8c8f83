"""One pass of the frozen teacher over a split: energy, confidence and correctness of every image, at any size.

Memory grows with N by a label (8 bytes an image), an energy (4), a group (1) and, while groups are fitted, the ranks
(8, and about as much again inside the sort); for image files also by their paths.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.compute.distributed import ALONE, World
from pipeline.compute.parts import Columns, Parts, fill, rows_per_part
from pipeline.config import EnergyParams
from pipeline.data.loader import Images, open_images
from pipeline.data.normalisation import Normalisation
from pipeline.energy.groups import EnergyGroups, energy_score, fit_groups
from pipeline.energy.temperatures import max_logit
from pipeline.errors import DataError
from pipeline.lineage import Places, Run
from pipeline.portable.accuracy import GROUPS
from pipeline.portable.files import sha256_file
from pipeline.store.space import require_space
from pipeline.store.tables import ROW_BYTES, EnergyLineage, write_table
from pipeline.training.inference import inference_batch, logits_in_batches
from pipeline.training.session import Session
from pipeline.training.weights import read_network


@dataclass(frozen=True)
class Scores:
    """Scores of B images in order.

    Attributes:
        max_logit: the largest logit less the mean of the logits.
        confidence: the largest probability.
    """

    label: NDArray[np.int64]
    energy: NDArray[np.float32]
    max_logit: NDArray[np.float32]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]


def score_images(
    teacher: nn.Module,
    images: Images,
    temperature: float,
    folder: Path,
    *,
    world: World = ALONE,
    batches_per_part: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Parts[Scores]:
    """Score the un-augmented images with the teacher in float32.

    All processes of ``world`` call it with the same arguments and share the missing parts; when it returns, every part
    exists. A barrier after each part tells all processes at once of an error in one.

    Args:
        temperature: T_E.
        folder: of the parts; existing parts, which must be of this split and teacher, are not scored again.
        batches_per_part: at most; see :func:`pipeline.compute.parts.rows_per_part`.
        on_images: called with the number of further images that are done, in all processes together.

    Raises:
        DataError: an energy or a logit is not finite; names the first such image.
    """
    batch = inference_batch(images)
    per_part = rows_per_part(batch, images.shape[1] * images.shape[2], batches_per_part)
    parts = Parts(folder, len(images), per_part, Scores)

    def compute(todo: list[range]) -> Generator[Columns]:
        return _scored(teacher, images, temperature, todo)

    fill(parts, batch, compute, _check_finite, world, images.device, on_images)
    return parts


def _check_finite(rows: range, columns: Sequence[NDArray[Any]]) -> None:
    scores = Scores(*columns)
    # a single logit of -inf leaves the energy finite, but not their mean
    if (bad := np.flatnonzero(~np.isfinite(scores.energy + scores.max_logit))).size:
        raise DataError(
            f"the teacher gives {bad.size} of the images {rows.start} to {rows.stop - 1} logits or an energy that are "
            f"not finite, the first at index {rows[int(bad[0])]}; its weights are damaged or its logits overflow, so "
            "use another checkpoint"
        )


@dataclass(frozen=True)
class Scored:
    """Energies and groups of both splits.

    Attributes:
        energy: of the training images, float32 [N].
        groups: fitted on them.
        train_top1, test_top1: of the teacher.
        train_group_top1: of the teacher in the low, mid and high group.
    """

    energy: Tensor
    groups: EnergyGroups
    train_top1: float
    test_top1: float
    train_group_top1: dict[str, float | None]


def score_splits(run: Run, params: EnergyParams, session: Session) -> Scored | None:
    """Score the training and the test images, and write both energy tables into their places in the run.

    Returns:
        None in all processes but the first.

    Raises:
        DataError: as of :func:`score_images` and :func:`pipeline.energy.groups.fit_groups`.
        SpaceError: the disk cannot hold the tables.
    """
    world, places = session.world, run.places
    with world.barrier():
        teacher = read_network(places.teacher, run.teacher)
        normalisation = Normalisation.of(run.teacher)
        splits = {name: open_images(places.data, name, session.device, normalisation) for name in ("train", "test")}
        if world.is_main:
            size = sum(map(len, splits.values())) * ROW_BYTES
            require_space(session.checkpoints / "energy", size, "the scores that are stored in parts")
            require_space(places.energy, size, "the energy tables", output=size)
    teacher.to(session.device).to(memory_format=torch.channels_last)
    made_from = {"temperature": params.temperature, "data": run.data.fingerprint}
    made_from |= {"teacher": run.teacher.weights_sha256}
    # a CPU and a GPU round differently, so neither continues with the energies of the other
    key_parts = made_from | {"device": session.device.type}
    with session.folder("energy", key_parts, "scoring these images") as folder:
        train, test = (
            score_images(teacher, images, params.temperature, folder / name, world=world, on_images=session.on_images)
            for name, images in splits.items()
        )
        return _write(places, train, test, params, made_from) if world.is_main else None


def _write(places: Places, train: Parts[Scores], test: Parts[Scores], params: EnergyParams, made_from: Any) -> Scored:
    energy = train.column("energy")
    groups = fit_groups(energy, params.low_fraction, params.high_fraction)
    test_codes = groups.assign(test.column("energy"))
    seen, fitted = test_codes.unique(), groups.codes.unique()  # type: ignore[no-untyped-call]
    if len(seen) == 1 and len(fitted) > 1:
        logging.warning(
            "all %d test images fall into the %s energy group of the training images: accuracy by group says nothing",
            len(test_codes),
            list(GROUPS)[int(seen[0])],
        )
    made_from |= {"low_threshold": groups.low_threshold, "high_threshold": groups.high_threshold}
    _write_table(places.energy, train, groups.codes, EnergyLineage(**made_from, split="train"))
    # the thresholds of this table decide the groups of the test images
    lineage = EnergyLineage(**made_from, split="test", energy=sha256_file(places.energy))
    _write_table(places.energy_test, test, test_codes, lineage)
    train_top1, by_group = scored_top1(train, groups.codes)
    return Scored(energy, groups, train_top1, scored_top1(test, test_codes)[0], by_group)


def _write_table(path: Path, parts: Parts[Scores], groups: Tensor, lineage: EnergyLineage) -> None:
    """Merge the parts into one table, a part at a time: index, the columns of :class:`Scores`, group."""
    tables = (
        {
            "index": np.arange(rows.start, rows.stop, dtype=np.int64),
            **vars(scores),
            "group": groups[rows.start : rows.stop].numpy(),
        }
        for rows, scores in parts
    )
    write_table(path, tables, lineage)


def scored_top1(parts: Parts[Scores], groups: Tensor) -> tuple[float, dict[str, float | None]]:
    """The teacher's top-1, and that of the low, mid and high group; None for a group without images.

    Args:
        groups: int8 [N].
    """
    sizes, hits = (np.zeros(len(GROUPS), dtype=np.int64) for _ in range(2))
    for rows, scores in parts:
        codes = groups[rows.start : rows.stop].numpy()
        sizes += np.bincount(codes, minlength=len(sizes))
        hits += np.bincount(codes[scores.correct], minlength=len(sizes))
    by_group = {name: int(hits[code]) / int(sizes[code]) if sizes[code] else None for name, code in GROUPS.items()}
    return int(hits.sum()) / parts.count, by_group


def _scored(teacher: nn.Module, images: Images, temperature: float, parts: list[range]) -> Generator[Columns]:
    """Yield the columns of :class:`Scores` of each batch."""
    for batch, logits in logits_in_batches(teacher, images, parts):
        confidence, answer = torch.softmax(logits, dim=1).max(dim=1)
        energy = energy_score(logits, temperature)
        yield batch.labels, energy, max_logit(logits), confidence, answer == batch.labels
