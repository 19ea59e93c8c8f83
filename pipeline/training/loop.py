"""The training loop of teacher and student."""

import logging
import math
import time
from collections.abc import Iterator
from itertools import takewhile

import torch
from torch import Tensor, nn

from pipeline.compute.convolutions import mended_convolutions
from pipeline.compute.device import autocast, fastest_kernels, has_bf16
from pipeline.compute.distributed import World
from pipeline.compute.seeds import CLEAN, PER_PROCESS, stream_seed
from pipeline.compute.sync_batch_norm import synchronised_batch_norm
from pipeline.config import TEACHER, TrainingParams
from pipeline.data.loader import Batch, Images, steps_per_epoch, view_batches
from pipeline.errors import TrainingError
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import Checkpoint, TrainingState
from pipeline.training.cross_entropy import CrossEntropy, epoch_indices
from pipeline.training.fastest import fastest_passes, resumed_passes
from pipeline.training.inference import predict
from pipeline.training.optimizer import Update, learning_rate
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from pipeline.training.stages import frozen, train_mode
from pipeline.training.task import S, Task

# all predictions may be one class for so long after the warmup, or for a tenth of the epochs if that is longer
_PATIENCE_EPOCHS, _PATIENCE_STEPS = 3, 100


def train(
    network: nn.Module, task: Task[S], params: TrainingParams, session: Session, checkpoint: Checkpoint | None = None
) -> Iterator[EpochRecord]:
    """Train ``network`` in place; the iterator trains one epoch before it yields the epoch's record.

    At its end ``task.kept`` has the weights that are asked for: of the last or the best epoch, averaged or not.
    A run that goes on from its checkpoint first yields the stored records, and ends in the same weights as one that was
    never stopped. All processes of the session get the same records and end in the same weights.

    Args:
        checkpoint: stores the last epoch and, before it, those worth the time; None to store none. The first process
            writes it, all read it. It is needed to keep the best epoch.

    Raises:
        SpaceError: the disk cannot hold the epochs that are stored.
        TrainingError: the loss or the weights were not finite, or the network has collapsed: it predicts one class for
            all validation images after the last epoch, or for a tenth of the epochs. Names step, learning rate and
            sample indices.
        ParamsError: compiling is on, but there is no compiler.
        ValueError: the network has no such stages to freeze, there is no such optimizer, or no checkpoint for the best.
    """
    if params.keep == "best" and checkpoint is None:
        raise ValueError("the best epoch is kept in a checkpoint, but there is none")
    if params.precision == "bf16" and not has_bf16(session.device):
        logging.warning(
            "%s: %s.training.precision is bf16, which this processor emulates: many times slower than auto",
            task.name,
            task.block,
        )
    if params.warmup_epochs >= params.epochs and session.world.is_main:
        logging.warning(
            "%s: %s.training.warmup_epochs is not below epochs, so the learning rate never reaches its peak",
            task.name,
            task.block,
        )
    network.to(session.device).to(memory_format=torch.channels_last)
    with frozen(task.kept, params.freeze):
        update = Update(network, task.kept, params)
        records = []
        if checkpoint is not None:
            with session.world.barrier():
                if session.world.is_main:
                    checkpoint.require_space(network, _copies(params, session))
            records = checkpoint.restore(TrainingState(network, update.optimizer, update.average))
        for record in records:
            for _ in range(task.steps):
                session.on_step()
            yield record
        yield from _further_epochs(network, task, params, session, checkpoint, update, records)
    if params.keep == "best" and checkpoint is not None:
        with session.world.barrier():  # the first process has written it
            pass
        checkpoint.load_best(task.kept)
    elif update.average is not None:
        task.kept.load_state_dict(update.average.state_dict())


def _further_epochs(
    network: nn.Module,
    task: Task[S],
    params: TrainingParams,
    session: Session,
    checkpoint: Checkpoint | None,
    update: Update,
    records: list[EpochRecord],
) -> Iterator[EpochRecord]:
    """Train the epochs after those of ``records``, append a record of each and yield it."""
    device, world = session.device, session.world
    validated = task.kept if update.average is None else update.average
    best = validated if session.keep_best or params.keep == "best" else None
    state = TrainingState(network, update.optimizer, update.average)
    with synchronised_batch_norm(network, world), mended_convolutions(network, device), fastest_kernels():
        passes = resumed_passes(records[-1], session) if records else fastest_passes(network, task, params, session)
        forward = world.parallel(network)
        for epoch in range(len(records), params.epochs):
            # the first process draws as a single one would, the others differently: dropout must differ between parts
            torch.manual_seed(stream_seed(task.seed, PER_PROCESS * world.rank, epoch))
            train_mode(network)
            losses = torch.zeros(task.steps, device=device)
            indices: list[Tensor] = []
            started = time.perf_counter()
            with passes.of(network, *task.frozen):
                for number, step in enumerate(task.epoch_steps(epoch)):
                    with autocast(passes.precision, device):
                        loss = task.objective(forward, step, epoch)
                    rate = update.step(loss, epoch * task.steps + number, epoch + number / task.steps)
                    losses[number] = loss.detach()
                    indices.append(step.index)
                    session.on_step()
            # checked once per epoch: reading the loss in each step would leave the GPU idle
            losses = world.total(losses) / world.size
            _check_finite(losses, network, indices, task, params, epoch, world)
            seconds = time.perf_counter() - started
            found = task.validate(validated)
            means = float(losses.mean()), found.top1, rate, seconds, found.constant
            records.append(EpochRecord(epoch, *means, passes.precision, passes.compiled))
            _check_collapse(records, indices, task, params, world)
            if checkpoint is not None and world.is_main:
                checkpoint.offer(state, records, last=epoch == params.epochs - 1, best=best)
            yield records[-1]


def _copies(params: TrainingParams, session: Session) -> int:
    """Number of tensors that a checkpoint stores for each weight: itself, moments, average, best."""
    moments = 1 if params.optimizer in ("sgd", "momentum", "nesterov") else 2
    best = session.keep_best or params.keep == "best"
    return 1 + moments + (params.ema_decay is not None) + best


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
    cross_entropy = CrossEntropy.of(images.labels, params)

    def epoch_steps(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator(images.device).manual_seed(stream_seed(seed, CLEAN, epoch))
        indices = epoch_indices(images.labels, params, generator)
        return view_batches(images, indices, generator, session.world)

    def objective(network: nn.Module, batch: Batch, epoch: int) -> Tensor:
        return batch.process_weight * cross_entropy(network(batch.images).float(), batch.labels)

    def validate(network: nn.Module) -> Predictions:
        return predict(network, validation, session.world)

    steps = steps_per_epoch(len(images), params.batch_size)
    task = Task(network, epoch_steps, steps, objective, validate, seed, TEACHER, TEACHER)
    return train(network, task, params, session, checkpoint)


def _check_finite(
    losses: Tensor,
    network: nn.Module,
    indices: list[Tensor],
    task: Task[S],
    params: TrainingParams,
    epoch: int,
    world: World,
) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten()
    # weights that are not finite make the next step's loss not finite too, but the last step has no next one
    step, what = len(losses) - 1, _not_finite(network)
    if bad.numel():
        step, what = int(bad[0]), "the loss"
    if what is not None:
        place = _place(step, indices, params, epoch, world)
        raise TrainingError(f"{task.name}: {what} was not finite at {place}; {_remedy(task)}")


def _not_finite(network: nn.Module) -> str | None:
    """The first parameter or buffer that holds a value which is not finite."""
    state = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in state.values()]).tolist()  # one transfer
    return next((f"the tensor {name}" for name, fine in zip(state, finite, strict=True) if not fine), None)


def _check_collapse(
    records: list[EpochRecord], indices: list[Tensor], task: Task[S], params: TrainingParams, world: World
) -> None:
    """Refuse a network that predicts one class for all images; a healthy one may do so in its first epochs."""
    epoch = records[-1].epoch
    alike = len(list(takewhile(lambda record: record.constant is not None, reversed(records))))
    settling = max(_PATIENCE_EPOCHS, math.ceil(_PATIENCE_STEPS / len(indices)), params.epochs // 10)
    patience = settling + math.ceil(params.warmup_epochs)
    last = epoch == params.epochs - 1
    if alike < patience and not (alike and last):
        return
    place = _place(len(indices) - 1, indices, params, epoch, world)
    collapse = (
        f"{task.name}: the network has collapsed: it predicts one class for all validation images (now "
        f"{records[-1].constant}) since epoch {epoch - alike + 1}, seen after {place}"
    )
    if params.epochs >= patience:
        raise TrainingError(f"{collapse}; {_remedy(task)}")
    logging.warning("%s; raise %s.training.epochs in params.yaml", collapse, task.block)


def _remedy(task: Task[S]) -> str:
    training = f"{task.block}.training"
    return f"lower {training}.learning_rate or lengthen {training}.warmup_epochs in params.yaml"


def _place(step: int, indices: list[Tensor], params: TrainingParams, epoch: int, world: World) -> str:
    rate = learning_rate(params, epoch + step / len(indices))
    samples = ", ".join(str(i) for i in world.gather(indices[step])[:8].tolist())
    return f"epoch {epoch} step {step} (learning rate {rate:.3g}, training samples {samples}, ...)"
