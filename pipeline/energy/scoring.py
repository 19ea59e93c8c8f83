"""One pass of the frozen teacher over a split: energy, confidence and correctness of every image, at any size.

The split is scored in parts of consecutive images, whole batches each, so no energy depends on the number of processes.
A part is one small Parquet file, written whole or not at all: a resumed run does not score it again. Memory grows with
N by a label (8 bytes an image), an energy (4), a group (1) and, while groups are fitted, the ranks (8, and about as
much again inside the sort); for image files also by their paths.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.compute.distributed import ALONE, World
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
from pipeline.store.tables import ROW_BYTES, EnergyLineage, ScoreLineage, read_table, write_table
from pipeline.training.inference import inference_batch, logits_in_batches
from pipeline.training.session import Session
from pipeline.training.weights import read_network

BATCHES_PER_PART = 256  # at most: 65,536 small images, seconds on a GPU, about a megabyte
_PIXELS_PER_PART = 2**28  # for large images: a kill and waiting for another process cost minutes at most


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


class ScoreParts:
    """The scores of a split, as files of consecutive images in one folder.

    Args:
        folder: need not exist.
        images: N.
        rows_per_part: images in a part; the last one may have fewer.

    Attributes:
        rows: the images of each part.
    """

    def __init__(self, folder: Path, images: int, rows_per_part: int) -> None:
        self.folder = folder
        self.images = images
        self.rows = [range(start, min(start + rows_per_part, images)) for start in range(0, images, rows_per_part)]

    def __iter__(self) -> Iterator[tuple[range, Scores]]:
        return ((rows, self.read(rows)) for rows in self.rows)

    def path(self, rows: range) -> Path:
        """The file of a part."""
        return self.folder / f"{rows.start:012d}-{rows.stop:012d}.parquet"

    def write(self, rows: range, scores: Scores) -> None:
        """Keep the scores of a part. Atomic: after a kill the part is there or not."""
        write_table(self.path(rows), [vars(scores)], ScoreLineage())

    def read(self, rows: range) -> Scores:
        """The scores of a part. Raises DataError: it is missing or damaged."""
        path = self.path(rows)
        columns = read_table(path, ScoreLineage).columns
        scores = Scores(*(columns[name] for name in Scores.__dataclass_fields__))
        if len(scores.energy) != len(rows):
            raise DataError(f"{path} has {len(scores.energy)} images, not {len(rows)}; run `dvc repro` to make it anew")
        return scores

    def missing(self) -> list[range]:
        """The parts that are still to be scored, including damaged ones."""
        return [rows for rows in self.rows if not self._is_whole(rows)]

    def energy(self) -> Tensor:
        """Energies of all images: float32 [N]."""
        energy = torch.empty(self.images)
        for rows, scores in self:
            energy[rows.start : rows.stop] = torch.from_numpy(scores.energy.copy())
        return energy

    def _is_whole(self, rows: range) -> bool:
        try:
            self.read(rows)
        except DataError:  # missing or damaged: it is scored again
            return False
        return True


def score_images(
    teacher: nn.Module,
    images: Images,
    temperature: float,
    folder: Path,
    *,
    world: World = ALONE,
    batches_per_part: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> ScoreParts:
    """Score the un-augmented images with the teacher in float32.

    All processes of ``world`` call it with the same arguments and share the missing parts; when it returns, every part
    exists. A barrier after each part tells all processes at once of an error in one.

    Args:
        temperature: T_E.
        folder: of the parts; existing parts, which must be of this split and teacher, are not scored again.
        batches_per_part: at most; :data:`BATCHES_PER_PART` unless given.
        on_images: called with the number of further images that are done, in all processes together.

    Raises:
        DataError: an energy or a logit is not finite; names the first such image.
    """
    batch = inference_batch(images)
    most = max(1, _PIXELS_PER_PART // (batch * images.shape[1] * images.shape[2]))
    parts = ScoreParts(folder, len(images), batch * min(batches_per_part or BATCHES_PER_PART, most))
    todo = _agreed(parts, world, images.device)
    on_images(len(images) - sum(map(len, todo)))
    mine = todo[world.rank :: world.size]
    with closing(_scored(teacher, images, temperature, mine)) as batches:
        for turn in range(0, len(todo), world.size):
            at_once = todo[turn : turn + world.size]
            done = 0
            with world.barrier():
                if world.rank < len(at_once):
                    rows = at_once[world.rank]
                    columns: list[tuple[Tensor, ...]] = []
                    for scored in islice(batches, -(-len(rows) // batch)):
                        columns.append(scored)
                        done += len(scored[0])
                        on_images(len(scored[0]))
                    scores = Scores(*(torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)))
                    # a single logit of -inf leaves the energy finite, but not their mean
                    if (bad := np.flatnonzero(~np.isfinite(scores.energy + scores.max_logit))).size:
                        raise DataError(
                            f"the teacher gives {bad.size} of the images {rows.start} to {rows.stop - 1} logits or an "
                            f"energy that are not finite, the first at index {rows[int(bad[0])]}; its weights are "
                            "damaged or its logits overflow, so use another checkpoint"
                        )
                    parts.write(rows, scores)
            on_images(sum(map(len, at_once)) - done)
    return parts


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


def _write(places: Places, train: ScoreParts, test: ScoreParts, params: EnergyParams, made_from: Any) -> Scored:
    energy = train.energy()
    groups = fit_groups(energy, params.low_fraction, params.high_fraction)
    test_codes = groups.assign(test.energy())
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


def _write_table(path: Path, parts: ScoreParts, groups: Tensor, lineage: EnergyLineage) -> None:
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


def scored_top1(parts: ScoreParts, groups: Tensor) -> tuple[float, dict[str, float | None]]:
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
    return int(hits.sum()) / parts.images, by_group


def _agreed(parts: ScoreParts, world: World, device: torch.device) -> list[range]:
    """The parts to score, as the first process sees them, so that all processes share the same list."""
    flags = torch.zeros(len(parts.rows), dtype=torch.int64, device=device)
    if world.is_main:
        missing = set(parts.missing())
        flags = torch.tensor([rows in missing for rows in parts.rows], dtype=torch.int64, device=device)
    return [rows for rows, flag in zip(parts.rows, world.total(flags).tolist(), strict=True) if flag]


def _scored(
    teacher: nn.Module, images: Images, temperature: float, parts: list[range]
) -> Generator[tuple[Tensor, ...]]:
    """Yield the columns of :class:`Scores` of each batch, on the device.

    One iterator over all parts, so that the workers also decode images of the next part ahead.
    """
    for batch, logits in logits_in_batches(teacher, images, parts):
        confidence, answer = torch.softmax(logits, dim=1).max(dim=1)
        energy = energy_score(logits, temperature)
        yield batch.labels, energy, max_logit(logits), confidence, answer == batch.labels
