"""The training loop of teacher and student, to be read from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compute.device import autocast, compiled, fastest_kernels, full_fp32, has_bf16, whole_gradients
from pipeline.compute.distributed import ALONE, World
from pipeline.compute.seeds import CLEAN, PER_PROCESS, stream_seed
from pipeline.compute.sync_batch_norm import synchronised_batch_norm
from pipeline.config import TrainingParams
from pipeline.data.loader import Batch, Images, shuffled_batches, steps_per_epoch
from pipeline.errors import TrainingError
from pipeline.training.answers import Answers
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.inference import answers


class Step(Protocol):
    """What one step of training is made of; the objective knows the rest."""

    @property
    def index(self) -> Tensor:
        """int64 [B]: the training samples of the step, for messages."""
        ...


S = TypeVar("S", bound=Step)

# for how long after the warmup a network may answer alike, or for a tenth of the epochs if that is longer
_PATIENCE_EPOCHS, _PATIENCE_STEPS = 3, 100
_REMEDY = "lower training.learning_rate or lengthen training.warmup_epochs in params.yaml"


@dataclass(frozen=True)
class EpochRecord:
    """What is known after one epoch.

    Attributes:
        epoch: counted from 0.
        train_loss: mean over the steps.
        val_top1: validation top-1.
        learning_rate: of the last step.
        seconds: wall time of the steps, without the validation.
        constant: the class that all validation images were given, None if they were given several.
    """

    epoch: int
    train_loss: float
    val_top1: float
    learning_rate: float
    seconds: float = field(compare=False)
    constant: int | None = None


def cross_entropy(network: nn.Module, batch: Batch, epoch: int) -> Tensor:
    """Mean cross-entropy: the objective of a teacher."""
    return batch.weight * F.cross_entropy(network(batch.images).float(), batch.labels)


def train_classifier(
    network: nn.Module,
    images: Images,
    validation: Images,
    params: TrainingParams,
    seed: int,
    *,
    world: World = ALONE,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> list[EpochRecord]:
    """Train ``network`` in place on the labels alone, as teachers are; the rest as for :func:`train`."""

    def epoch_steps(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator(images.device).manual_seed(stream_seed(seed, CLEAN, epoch))
        return shuffled_batches(images, params.batch_size, generator, world)

    return train(
        network,
        epoch_steps,
        steps_per_epoch(len(images), params.batch_size),
        cross_entropy,
        params,
        seed=seed,
        device=images.device,
        validate=lambda trained: answers(trained, validation, world),
        world=world,
        checkpoint=checkpoint,
        on_step=on_step,
        on_epoch=on_epoch,
    )


def train(
    network: nn.Module,
    epoch_steps: Callable[[int], Iterable[S]],
    steps: int,
    objective: Callable[[nn.Module, S, int], Tensor],
    params: TrainingParams,
    *,
    seed: int,
    device: torch.device,
    validate: Callable[[nn.Module], Answers],
    world: World = ALONE,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> list[EpochRecord]:
    """Train ``network`` in place.

    Every random draw of an epoch comes from ``seed`` and the epoch's number, so that a run that was stopped and goes on
    from its checkpoint ends in the same weights as one that was not.

    Args:
        epoch_steps: the steps of an epoch, this process's part of each; a pure function of the epoch's number, counted
            from 0.
        steps: how many steps an epoch has.
        objective: the scalar to minimise, from network, step and epoch.
        validate: what the network answers to the validation images.
        world: the processes that train together; all return the same records and end in the same weights. The first
            writes the checkpoint, all read it.
        checkpoint: where the last epoch, and before it those worth storing, are kept; None to keep none.
        on_step: called after each step, also once per step of epochs that the checkpoint had finished.

    Returns:
        One record per epoch, those of the checkpoint included.

    Raises:
        TrainingError: the loss or the weights were not finite, or the network has collapsed: it gives all validation
            images one class after the last epoch, or for a tenth of the epochs. Names step, learning rate and sample
            indices.
    """
    if params.precision == "bf16" and not has_bf16(device):
        logging.warning("training.precision is bf16, which this processor emulates: many times slower than auto")
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=params.learning_rate,
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        fused=True,
    )
    records: list[EpochRecord] = []
    if checkpoint is not None:
        records = [EpochRecord(**record) for record in checkpoint.restore(network, optimizer)]
    for record in records:
        on_epoch(record)
        for _ in range(steps):
            on_step()

    exact = full_fp32() if params.precision == "fp32" else nullcontext()
    with synchronised_batch_norm(network, world), whole_gradients(network, device), fastest_kernels(), exact:
        forward = world.parallel(compiled(network, params.compile, device))
        for epoch in range(len(records), params.epochs):
            # the first process draws as one alone would, the others differently: dropout must not be alike in all parts
            torch.manual_seed(stream_seed(seed, PER_PROCESS * world.rank, epoch))
            network.train()
            losses = torch.zeros(steps, device=device)
            indices: list[Tensor] = []
            started = time.perf_counter()
            for number, step in enumerate(epoch_steps(epoch)):
                rate = learning_rate(params, epoch + number / steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with autocast(params.precision, device):
                    loss = objective(forward, step, epoch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses[number] = loss.detach()
                indices.append(step.index)
                on_step()
            # looked at once per epoch: a look in each step would make a GPU wait for the host
            losses = world.total(losses) / world.size
            _check_finite(losses, network, indices, params, epoch, world)
            seconds = time.perf_counter() - started
            found = validate(network)
            record = EpochRecord(epoch, float(losses.mean()), found.top1, rate, seconds, found.constant)
            records.append(record)
            _check_collapse(records, indices, params, world)
            last = epoch == params.epochs - 1
            if checkpoint is not None and world.first and (last or checkpoint.worth_saving):
                checkpoint.save(network, optimizer, [vars(record) for record in records])
            on_epoch(record)
    return records


def learning_rate(params: TrainingParams, epoch: float) -> float:
    """The learning rate as a pure function of the position in training, in epochs (0 <= epoch < params.epochs)."""
    if epoch < params.warmup_epochs:
        return params.learning_rate * max(epoch, 0.01 * params.warmup_epochs) / params.warmup_epochs
    if params.schedule == "step":
        return float(params.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in params.milestones))
    progress = (epoch - params.warmup_epochs) / max(params.epochs - params.warmup_epochs, 1e-9)
    return params.learning_rate * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _check_finite(
    losses: Tensor, network: nn.Module, indices: list[Tensor], params: TrainingParams, epoch: int, world: World
) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten()
    # weights that a step made so give the next one such a loss, but for the last step
    step, what = len(losses) - 1, _not_finite(network)
    if bad.numel():
        step, what = int(bad[0]), "the loss"
    if what is not None:
        place = _place(step, indices, params, epoch, world)
        raise TrainingError(f"{what} was not finite at {place}; {_REMEDY}")


def _not_finite(network: nn.Module) -> str | None:
    """The first parameter or buffer that holds a value which is not finite."""
    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in state.values()]).tolist()  # one look at the device
    return next((f"the tensor {name}" for name, fine in zip(state, finite, strict=True) if not fine), None)


def _check_collapse(records: list[EpochRecord], indices: list[Tensor], params: TrainingParams, world: World) -> None:
    """Refuse a network that answers alike whatever it is shown, which a sound one may do too in its first epochs."""
    epoch = records[-1].epoch
    alike = len(list(takewhile(lambda record: record.constant is not None, reversed(records))))
    settling = max(_PATIENCE_EPOCHS, math.ceil(_PATIENCE_STEPS / len(indices)), params.epochs // 10)
    patience = settling + math.ceil(params.warmup_epochs)
    last = epoch == params.epochs - 1
    if alike < patience and not (alike and last):
        return
    collapse = (
        f"the network has collapsed: it gives all validation images one class (now {records[-1].constant}) since "
        f"epoch {epoch - alike + 1}, seen after {_place(len(indices) - 1, indices, params, epoch, world)}"
    )
    if params.epochs >= patience:
        raise TrainingError(f"{collapse}; {_REMEDY}")
    logging.warning("%s; raise training.epochs in params.yaml", collapse)


def _place(step: int, indices: list[Tensor], params: TrainingParams, epoch: int, world: World) -> str:
    rate = learning_rate(params, epoch + step / len(indices))
    samples = ", ".join(str(i) for i in world.gather(indices[step])[:8].tolist())
    return f"epoch {epoch} step {step} (learning rate {rate:.3g}, training samples {samples}, ...)"
