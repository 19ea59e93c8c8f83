"""The training loop of teacher and student."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compute.device import autocast, bf16_conv_workaround, compiled, fastest_kernels, full_fp32, has_bf16
from pipeline.compute.distributed import World
from pipeline.compute.seeds import CLEAN, PER_PROCESS, stream_seed
from pipeline.compute.sync_batch_norm import synchronised_batch_norm
from pipeline.config import TrainingParams
from pipeline.data.loader import Batch, Images, shuffled_batches, steps_per_epoch
from pipeline.errors import TrainingError
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.inference import predict
from pipeline.training.optimizer import learning_rate, make_optimizer
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session


class Step(Protocol):
    """Batches of one training step; the loop itself reads only ``index``."""

    @property
    def index(self) -> Tensor:
        """int64 [B]: the training samples of the step, for messages."""
        ...


S = TypeVar("S", bound=Step)

# all predictions may be one class for so long after the warmup, or for a tenth of the epochs if that is longer
_PATIENCE_EPOCHS, _PATIENCE_STEPS = 3, 100
_REMEDY = "lower training.learning_rate or lengthen training.warmup_epochs in params.yaml"


@dataclass(frozen=True)
class Task(Generic[S]):
    """Data, objective and validation of a training.

    Attributes:
        epoch_steps: this process's part of the steps of an epoch; a pure function of the epoch, counted from 0.
        steps: number of steps of an epoch.
        objective: the scalar to minimise, from network, step and epoch.
        validate: predictions of the network for the validation images.
        seed: with the number of the epoch, it decides every random draw of the epoch.
    """

    epoch_steps: Callable[[int], Iterable[S]]
    steps: int
    objective: Callable[[nn.Module, S, int], Tensor]
    validate: Callable[[], Predictions]
    seed: int


def train(
    network: nn.Module, task: Task[S], params: TrainingParams, session: Session, checkpoint: Checkpoint | None = None
) -> Iterator[EpochRecord]:
    """Train ``network`` in place; the iterator trains one epoch before it yields the epoch's record.

    A run that goes on from its checkpoint first yields the stored records, and ends in the same weights as one that was
    never stopped. All processes of the session get the same records and end in the same weights.

    Args:
        checkpoint: stores the last epoch and, before it, those worth the time; None to store none. The first process
            writes it, all read it.

    Raises:
        TrainingError: the loss or the weights were not finite, or the network has collapsed: it predicts one class for
            all validation images after the last epoch, or for a tenth of the epochs. Names step, learning rate and
            sample indices.
    """
    device, world = session.device, session.world
    if params.precision == "bf16" and not has_bf16(device):
        logging.warning("training.precision is bf16, which this processor emulates: many times slower than auto")
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, params)
    records: list[EpochRecord] = []
    for record in checkpoint.restore(network, optimizer) if checkpoint is not None else []:
        records.append(record)
        for _ in range(task.steps):
            session.on_step()
        yield record

    exact = full_fp32() if params.precision == "fp32" else nullcontext()
    with synchronised_batch_norm(network, world), bf16_conv_workaround(network, device), fastest_kernels(), exact:
        forward = world.parallel(compiled(network, params.compile, device))
        for epoch in range(len(records), params.epochs):
            # the first process draws as a single one would, the others differently: dropout must differ between parts
            torch.manual_seed(stream_seed(task.seed, PER_PROCESS * world.rank, epoch))
            network.train()
            losses = torch.zeros(task.steps, device=device)
            indices: list[Tensor] = []
            started = time.perf_counter()
            for number, step in enumerate(task.epoch_steps(epoch)):
                rate = learning_rate(params, epoch + number / task.steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                with autocast(params.precision, device):
                    loss = task.objective(forward, step, epoch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses[number] = loss.detach()
                indices.append(step.index)
                session.on_step()
            # checked once per epoch: reading the loss in each step would leave the GPU idle
            losses = world.total(losses) / world.size
            _check_finite(losses, network, indices, params, epoch, world)
            seconds = time.perf_counter() - started
            validated = task.validate()
            record = EpochRecord(epoch, float(losses.mean()), validated.top1, rate, seconds, validated.constant)
            records.append(record)
            _check_collapse(records, indices, params, world)
            if checkpoint is not None and world.is_main:
                checkpoint.offer(network, optimizer, records, last=epoch == params.epochs - 1)
            yield record


def train_classifier(
    network: nn.Module,
    images: Images,
    validation: Images,
    params: TrainingParams,
    seed: int,
    session: Session,
    checkpoint: Checkpoint | None = None,
) -> Iterator[EpochRecord]:
    """Train ``network`` in place on the labels alone, as teachers are; the rest as for :func:`train`."""

    def epoch_steps(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator(images.device).manual_seed(stream_seed(seed, CLEAN, epoch))
        return shuffled_batches(images, params.batch_size, generator, session.world)

    def validate() -> Predictions:
        return predict(network, validation, session.world)

    task = Task(epoch_steps, steps_per_epoch(len(images), params.batch_size), cross_entropy, validate, seed)
    return train(network, task, params, session, checkpoint)


def cross_entropy(network: nn.Module, batch: Batch, epoch: int) -> Tensor:
    """Mean cross-entropy: the objective of a teacher."""
    return batch.process_weight * F.cross_entropy(network(batch.images).float(), batch.labels)


def _check_finite(
    losses: Tensor, network: nn.Module, indices: list[Tensor], params: TrainingParams, epoch: int, world: World
) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten()
    # weights that are not finite make the next step's loss not finite too, but the last step has no next one
    step, what = len(losses) - 1, _not_finite(network)
    if bad.numel():
        step, what = int(bad[0]), "the loss"
    if what is not None:
        place = _place(step, indices, params, epoch, world)
        raise TrainingError(f"{what} was not finite at {place}; {_REMEDY}")


def _not_finite(network: nn.Module) -> str | None:
    """The first parameter or buffer that holds a value which is not finite."""
    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in state.values()]).tolist()  # one transfer
    return next((f"the tensor {name}" for name, fine in zip(state, finite, strict=True) if not fine), None)


def _check_collapse(records: list[EpochRecord], indices: list[Tensor], params: TrainingParams, world: World) -> None:
    """Refuse a network that predicts one class for all images; a healthy one may do so in its first epochs."""
    epoch = records[-1].epoch
    alike = len(list(takewhile(lambda record: record.constant is not None, reversed(records))))
    settling = max(_PATIENCE_EPOCHS, math.ceil(_PATIENCE_STEPS / len(indices)), params.epochs // 10)
    patience = settling + math.ceil(params.warmup_epochs)
    last = epoch == params.epochs - 1
    if alike < patience and not (alike and last):
        return
    collapse = (
        f"the network has collapsed: it predicts one class for all validation images (now {records[-1].constant}) "
        f"since epoch {epoch - alike + 1}, seen after {_place(len(indices) - 1, indices, params, epoch, world)}"
    )
    if params.epochs >= patience:
        raise TrainingError(f"{collapse}; {_REMEDY}")
    logging.warning("%s; raise training.epochs in params.yaml", collapse)


def _place(step: int, indices: list[Tensor], params: TrainingParams, epoch: int, world: World) -> str:
    rate = learning_rate(params, epoch + step / len(indices))
    samples = ", ".join(str(i) for i in world.gather(indices[step])[:8].tolist())
    return f"epoch {epoch} step {step} (learning rate {rate:.3g}, training samples {samples}, ...)"
