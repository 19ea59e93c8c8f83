"""Base losses of distillation, one file each, and the table of them.

Each loss computes one value per sample, [B]; the objective takes the mean. The temperature is one number per sample,
[B], or a float for a constant vector: "Energy X" is loss X with energy temperatures, not a separate loss.
`standardize` z-scores the logits for any of them.

A new loss is a file with its function and its :class:`~pipeline.distillation.losses.base.BaseLoss`, its line in
:data:`LOSSES`, and its block of parameters in :mod:`pipeline.config` and params.yaml.
"""

from torch import nn

from pipeline.config import DistillParams
from pipeline.distillation.losses.base import BaseLoss
from pipeline.distillation.losses.dist import DistLoss
from pipeline.distillation.losses.dkd import DkdLoss
from pipeline.distillation.losses.features import FEATURE_LOSSES, FeatureLoss
from pipeline.distillation.losses.kd import KdLoss
from pipeline.distillation.losses.mlkd import MlkdLoss
from pipeline.store.documents import Shape

LOSSES: dict[str, type[BaseLoss]] = {
    "kd": KdLoss,
    "dkd": DkdLoss,
    "mlkd": MlkdLoss,
    "dist": DistLoss,
    **dict.fromkeys(FEATURE_LOSSES, FeatureLoss),
}


def make_loss(params: DistillParams, student: nn.Module, teacher: nn.Module, shape: Shape) -> BaseLoss:
    """The base loss that ``params.loss`` asks for; errors as of its class, which name keys of ``params``."""
    return LOSSES[params.loss.name](params, student, teacher, shape)
