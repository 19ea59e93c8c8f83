"""Passes of the frozen teachers over views that are drawn beforehand, so that trainings need no teacher.

Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (arXiv 2112.01528); Faghri et al.,
"Reinforce Data, Multiply Impact" (arXiv 2303.08983).
"""

import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.compute.device import full_fp32
from pipeline.compute.parts import Columns, Parts, fill, rows_per_part
from pipeline.compute.seeds import NUMBERED, stream_seed
from pipeline.config import FurtherTeacherParams, Params
from pipeline.data.loader import Images, open_images
from pipeline.data.normalisation import Normalisation, taking
from pipeline.data.views import View, numbered_views
from pipeline.energy.groups import energy_score
from pipeline.energy.temperatures import max_logit
from pipeline.errors import DataError, LineageError, SpaceError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.portable.text import brief
from pipeline.soft_labels.passes import Network, fastest
from pipeline.soft_labels.rows import Rows
from pipeline.soft_labels.table import StoredAnswers, label_type, row_bytes, rows_of, write_soft_labels
from pipeline.store.documents import Shape, SoftLabelCard
from pipeline.store.space import require_space
from pipeline.training.inference import inference_batch
from pipeline.training.initial import given_teacher
from pipeline.training.session import Session
from pipeline.training.teacher import fitting_normalisation
from pipeline.training.weights import check_runs, read_network


def planned_views(params: Params, images: int) -> int:
    """Number of views that are stored of so many training images."""
    labels = params.soft_labels
    return images * labels.views + int(images * params.heda.fraction) * labels.extra_views


def planned_bytes(params: Params, images: int, classes: int) -> int:
    """Size of the table for so many training images and classes."""
    return planned_views(params, images) * row_bytes(min(params.soft_labels.classes, classes), classes)


def check_size(params: Params, images: int, classes: int) -> None:
    """Refuse a table larger than ``soft_labels.max_gb``.

    Raises:
        SpaceError: says the size.
    """
    labels, size = params.soft_labels, planned_bytes(params, images, classes)
    if size > labels.max_gb * 1e9:
        raise SpaceError(
            f"params.yaml: soft_labels would fill {size / 1e9:,.3g} GB ({planned_views(params, images):,} views of "
            f"{images:,} images, {min(labels.classes, classes)} classes each), more than max_gb {labels.max_gb:g}; "
            "lower views or classes, or raise max_gb"
        )


def check_soft_labels(run: Run, params: Params) -> None:
    """Refuse soft labels of other views or other teachers than ``params`` ask for.

    Raises:
        LineageError: names the first difference.
        DataError: as of :attr:`pipeline.lineage.Run.soft_labels`.
    """
    found, wanted = run.soft_labels.content(), _card(run, params).content()
    for name, value in wanted.items():
        if found[name] != value and name != "seed":  # the students of a study differ in it, and share the labels
            raise LineageError(
                f"{run.places.soft_labels} was made with {name} {brief(found[name])}, but params.yaml asks for "
                f"{brief(value)}; run `dvc repro store_soft_labels`"
            )


def further_teachers(
    params: Params, classes: int, shape: Shape
) -> Iterator[tuple[str, FurtherTeacherParams, nn.Module]]:
    """Yield the further teachers: where each stands in params.yaml, its parameters, and the network with its weights.

    Raises:
        ParamsError: there is no such network, or it cannot take the images.
        CheckpointError: the weights are missing, unreadable, or of another network or other classes.
    """
    for number, teacher in enumerate(params.soft_labels.teachers):
        block = f"soft_labels.teachers[{number}]"
        network = given_teacher(teacher, classes, shape, block)
        check_runs(network, f"{block}.network", classes, shape)
        yield block, teacher, network


def make_soft_labels(run: Run, params: Params, session: Session) -> SoftLabelCard | None:
    """Store the teachers' answers to the views that ``params.soft_labels`` asks for, in their place in the run.

    Returns:
        Their card; None in all processes but the first.

    Raises:
        CheckpointError: a further teacher is missing, of another network or of other classes.
        DataError: a teacher's answer is not finite.
        SpaceError: the disk, or ``max_gb``, cannot hold them.
    """
    labels, data, world, device = params.soft_labels, run.data, session.world, session.device
    classes = len(data.class_names)
    size = planned_bytes(params, data.counts.train, classes)
    with world.barrier():
        if world.is_main:
            check_size(params, data.counts.train, classes)
            require_space(session.checkpoints / "soft_labels", size, "the soft labels that are stored in parts")
            require_space(run.places.soft_labels, size, "the soft labels", output=size)
    card = _card(run, params)
    own = Normalisation.of(run.teacher)
    images = open_images(run.places.data, "train", device, own, params.data.augmentation)
    rows = rows_of(run, labels.views, labels.extra_views, device)
    batch = min(inference_batch(images), max(1, len(rows)))
    with session.folder("soft_labels", card.content() | {"device": device.type}, "storing these soft labels") as folder:
        parts = Parts(folder, len(rows), rows_per_part(batch, images.shape[1] * images.shape[2]), StoredAnswers)
        teachers: Sequence[Network] = []
        if labels.views:
            [first] = _views(images, rows, [range(batch)], batch, card)
            teachers = fastest(_teachers(run, params, session), first.images, len(rows) // batch, folder, session)

        def compute(todo: list[range]) -> Generator[Columns]:
            return _answers(teachers, _views(images, rows, todo, batch, card), card)

        fill(parts, batch, compute, _check_finite, world, device, session.on_images)
        if not world.is_main:
            return None
        write_soft_labels(run.places.soft_labels, parts, card)
        return card


def _card(run: Run, params: Params) -> SoftLabelCard:
    labels = params.soft_labels
    return SoftLabelCard(
        data=run.data.fingerprint,
        teacher=run.teacher.weights_sha256,
        teachers=[sha256_file(Path(teacher.checkpoint)) for teacher in labels.teachers] if labels.views else [],
        subset=run.subset_sha256 if labels.extra_views else None,
        augmentation=params.data.augmentation.model_dump(mode="json"),
        seed=params.seed,
        mixed=labels.view == "mixed",
        views=labels.views,
        extra_views=labels.extra_views,
        kept=min(labels.classes, len(run.data.class_names)),
        energy_temperature=run.energy.lineage.temperature,
    )


def _teachers(run: Run, params: Params, session: Session) -> list[nn.Module]:
    """The teacher of the run and the further ones, in eval mode, for images in the normalisation of the first."""
    own, classes, shape = Normalisation.of(run.teacher), len(run.data.class_names), run.data.image.shape
    first = read_network(run.places.teacher, run.teacher)
    found = [(first, own)]
    for block, teacher, network in further_teachers(params, classes, shape):
        network.to(session.device)
        found.append((network, fitting_normalisation(network, run, teacher, session, block)))
    return [
        taking(own, network.to(session.device).to(memory_format=torch.channels_last), normalisation).eval()
        for network, normalisation in found
    ]


def _views(images: Images, rows: Rows, parts: list[range], batch: int, card: SoftLabelCard) -> Iterator[View]:
    """Yield the views of each batch of rows."""
    wanted = (
        rows.at(torch.arange(start, min(start + batch, part.stop), device=images.device))
        for part in parts
        for start in range(part.start, part.stop, batch)
    )
    return numbered_views(images, wanted, stream_seed(card.seed, NUMBERED), mixed=card.mixed)


def _answers(teachers: Sequence[Network], views: Iterator[View], card: SoftLabelCard) -> Generator[Columns]:
    """Yield the columns of each batch."""
    for view in views:
        with torch.inference_mode(), full_fp32():  # not around the yield, where they would affect the caller's code
            logits = [teacher(view.images).float() for teacher in teachers]
            total = torch.stack([values.log_softmax(dim=1) for values in logits]).logsumexp(dim=0)
            log_probability, label = (total - math.log(len(teachers))).topk(card.kept, dim=1)
            scores = energy_score(logits[0], card.energy_temperature), max_logit(logits[0])
        yield log_probability.half(), label.to(label_type(total.shape[1])), *scores


def _check_finite(rows: range, columns: Sequence[NDArray[Any]]) -> None:
    if bad := int((~StoredAnswers(*columns).finite).sum()):
        raise DataError(
            f"the teachers' answers to {bad} of the views {rows.start} to {rows.stop - 1} are not finite; the "
            "weights are damaged or the logits overflow, so use another checkpoint"
        )
