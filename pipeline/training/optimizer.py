"""The optimizer, its learning rate, and the average of the weights that it makes. Optimizers are those of timm."""

import difflib
import math
import random
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.config import TrainingParams
from pipeline.errors import ParamsError
from pipeline.portable.text import first_line
from pipeline.store.documents import Shape
from pipeline.training.stages import frozen, frozen_parameters, stages, train_mode

_TORCH = ("sgd", "adamw")  # these need nothing of timm, whose import takes a second
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


class Update:
    """A step of the optimizer: rate by the schedule, clipped gradients, averaged weights.

    The average is timm's and not torch's AveragedModel, because it begins with a decay near 0 that rises to
    ``ema_decay``: an average over a short training would else be that of its first weights. It averages batch
    statistics too, so it needs no further pass over the images.

    Args:
        network: the trained network, on its device.
        kept: the network that is validated and kept: the trained one or a part of it.

    Attributes:
        average: a copy of ``kept`` with averaged weights, in eval mode; None without ``ema_decay``.
    """

    def __init__(self, network: nn.Module, kept: nn.Module, params: TrainingParams) -> None:
        self.optimizer = make_optimizer(network, kept, params)
        self.average: nn.Module | None = None
        self._ema: Any = None
        if params.ema_decay is not None:
            from timm.utils import ModelEmaV3  # noqa: PLC0415  slow import for one setting

            self._ema = ModelEmaV3(kept, params.ema_decay, use_warmup=True)
            self.average = self._ema.module
        self._kept, self._params = kept, params
        self._parameters = [value for group in self.optimizer.param_groups for value in group["params"]]

    def step(self, loss: Tensor, number: int, epoch: float) -> float:
        """Change the weights and return the learning rate.

        Args:
            number: of the step in the whole training, counted from 0.
            epoch: position in training, in epochs.
        """
        rate = learning_rate(self._params, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._params.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._params.clip_grad_norm)
        self.optimizer.step()
        if self._ema is not None:
            self._ema.update(self._kept, step=number)
        return rate


def make_optimizer(network: nn.Module, kept: nn.Module, params: TrainingParams) -> torch.optim.Optimizer:
    """The optimizer over all parameters that have gradients, in one fused kernel where torch has it.

    Args:
        kept: the network whose layers ``layer_decay`` counts; other parameters learn like its last layer.

    Raises:
        ValueError: as of :func:`check_optimizer`.
    """
    check_optimizer(params.optimizer)
    groups = _groups(network, kept, params)
    options: dict[str, Any] = {"lr": params.learning_rate, "weight_decay": params.weight_decay}
    match params.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, momentum=params.momentum, fused=True, **options)
        case "adamw":
            return torch.optim.AdamW(groups, fused=True, **options)
    from timm.optim import create_optimizer_v2, get_optimizer_info  # noqa: PLC0415  takes a second

    if get_optimizer_info(params.optimizer).opt_class in _FUSED:
        options["fused"] = True
    optimizer = create_optimizer_v2(groups, params.optimizer, momentum=params.momentum, **options)
    return cast(torch.optim.Optimizer, optimizer)


def _groups(network: nn.Module, kept: nn.Module, params: TrainingParams) -> list[Any]:
    """The parameters, in groups where their decay or their rate differs."""
    if params.decay_norms_and_biases and params.layer_decay == 1:
        return [value for value in network.parameters() if value.requires_grad]
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # noqa: PLC0415  takes a second

    prefix = next(f"{name}." if name else "" for name, part in network.named_modules() if part is kept)
    undecayed: list[str] = []
    if not params.decay_norms_and_biases and hasattr(kept, "no_weight_decay"):
        undecayed = [prefix + name for name in cast(Any, kept).no_weight_decay()]
    alike = not params.decay_norms_and_biases
    if params.layer_decay == 1:
        return list(param_groups_weight_decay(network, params.weight_decay, alike, undecayed))
    layers = {prefix + name: n for n, names in enumerate(stages(kept, coarse=False)) for name in names}
    last = max(layers.values())
    # timm asks a network for its layers, which those of other libraries do not know
    layered = SimpleNamespace(
        named_parameters=network.named_parameters,
        group_matcher=lambda coarse: lambda name: layers.get(name, last),
    )
    return list(
        param_groups_layer_decay(
            cast(nn.Module, layered),
            params.weight_decay,
            undecayed,
            layer_decay=params.layer_decay,
            weight_decay_exclude_1d=alike,
        )
    )


def check_trainable(network: nn.Module, params: TrainingParams, key: str, shape: Shape) -> None:
    """Refuse an optimizer, a number of frozen stages or batches of one image that this network cannot be trained with.

    Args:
        key: the block of params.yaml that holds ``params``, for the message.
        shape: of an image.

    Raises:
        ParamsError: one of them is refused.
    """
    try:
        check_optimizer(params.optimizer)
        frozen_parameters(network, params.freeze)
        # larger batches are never cut down to one image: the incomplete batch of an epoch is left out
        if params.batch_size == 1:
            _check_single_images(network, params, shape)
    except ValueError as error:
        raise ParamsError(f"params.yaml: {key}.{error}") from None


def _check_single_images(network: nn.Module, params: TrainingParams, shape: Shape) -> None:
    """Refuse a network whose layers need several images in training: batch norms of maps of one pixel do.

    The weights, the batch statistics and the state of the random generator stay as they are.

    Raises:
        ValueError: one sentence that begins with the key.
    """
    modes = {part: part.training for part in network.modules()}
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    with frozen(network, params.freeze), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            train_mode(network)
            functional_call(network, statistics, (torch.zeros(1, *shape),))
        except Exception as error:  # networks raise whatever their layers raise
            raise ValueError(
                f"batch_size is 1, but {type(network).__name__} cannot be trained on single images of {shape[1]} x "
                f"{shape[2]} pixels ({first_line(error)}); set it to 2 or more, or choose a network without BatchNorm"
            ) from None
        finally:
            for part, training in modes.items():
                part.training = training


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that timm does not have, or that cannot be used here.

    Raises:
        ValueError: one sentence that begins with the key.
    """
    if name in _TORCH:
        return
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers  # noqa: PLC0415  takes a second

    if name not in list_optimizers():
        close = difflib.get_close_matches(name.lower(), list_optimizers(), n=3)
        advice = f"use {' or '.join(close)}" if close else "use sgd or adamw"
        raise ValueError(f"optimizer is {name!r}, which timm does not have; {advice}")
    if get_optimizer_info(name).second_order:
        raise ValueError(f"optimizer {name} needs second derivatives, which are not computed here; use sgd or adamw")
    try:
        optimizer = create_optimizer_v2([nn.Parameter(torch.zeros(1))], name, 0.1)
    except (AssertionError, ImportError) as error:
        raise ValueError(f"optimizer {name} cannot be used here ({error}); use sgd or adamw") from None
    if any(isinstance(value, random.Random) for value in vars(optimizer).values()):
        raise ValueError(
            f"optimizer {name} draws random numbers of its own, so a killed training would not go on as it began; "
            "use sgd or adamw"
        )


def learning_rate(params: TrainingParams, epoch: float) -> float:
    """The learning rate as a pure function of the position in training, in epochs (0 <= epoch < params.epochs)."""
    if epoch < params.warmup_epochs:
        return params.learning_rate * max(epoch, 0.01 * params.warmup_epochs) / params.warmup_epochs
    if params.schedule == "step":
        return float(params.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in params.milestones))
    progress = (epoch - params.warmup_epochs) / max(params.epochs - params.warmup_epochs, 1e-9)
    return params.learning_rate * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
