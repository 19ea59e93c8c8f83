"""A training in parts: data, objective and validation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor, nn

from pipeline.training.predictions import Predictions


class Step(Protocol):
    """Batches of one training step; the loop itself reads only ``index``."""

    @property
    def index(self) -> Tensor:
        """int64 [B]: the training samples of the step, for messages."""
        ...


S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Task(Generic[S]):
    """Data, objective and validation of a training.

    Attributes:
        kept: the network that is validated and kept: the trained one or a part of it.
        epoch_steps: this process's part of the steps of an epoch; a pure function of the epoch, counted from 0.
        steps: number of steps of an epoch.
        objective: the scalar to minimise, from network, step and epoch.
        validate: predictions of a network like ``kept`` for the validation images.
        seed: with the number of the epoch, it decides every random draw of the epoch.
        name, block: of what is trained, and where its parameters stand in params.yaml, for messages.
        frozen: further networks in the objective, whose passes are compiled where those of the trained one are.
    """

    kept: nn.Module
    epoch_steps: Callable[[int], Iterable[S]]
    steps: int
    objective: Callable[[nn.Module, S, int], Tensor]
    validate: Callable[[nn.Module], Predictions]
    seed: int
    name: str
    block: str
    frozen: Sequence[nn.Module] = ()
