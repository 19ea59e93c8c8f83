"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from pipeline.config import TrainingParams


def make_optimizer(network: nn.Module, params: TrainingParams) -> torch.optim.Optimizer:
    """SGD with momentum over all parameters, in one fused kernel."""
    return torch.optim.SGD(
        network.parameters(),
        lr=params.learning_rate,
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        fused=True,
    )


def learning_rate(params: TrainingParams, epoch: float) -> float:
    """The learning rate as a pure function of the position in training, in epochs (0 <= epoch < params.epochs)."""
    if epoch < params.warmup_epochs:
        return params.learning_rate * max(epoch, 0.01 * params.warmup_epochs) / params.warmup_epochs
    if params.schedule == "step":
        return float(params.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in params.milestones))
    progress = (epoch - params.warmup_epochs) / max(params.epochs - params.warmup_epochs, 1e-9)
    return params.learning_rate * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
