"""Base losses of distillation. Each returns one value per sample, [B]; the mean is taken once, by the caller.

Logit losses are functions. Their temperature is one number per sample, [B], or a float that stands for the constant
vector: "Energy X" is loss X called with energy temperatures, not a loss of its own. `standardize` z-scores the logits
for any of them.

Feature losses are modules with the signature `forward(student, teacher) -> [B]` on sequences of feature maps
[B, C, H, W]; the parameters of `FitNet` and `ReviewKD` are trained with the student's.
"""

from __future__ import annotations

from pipeline.distillation.losses.attention import Attention
from pipeline.distillation.losses.correlation import batch_correlation, class_correlation
from pipeline.distillation.losses.dist import dist
from pipeline.distillation.losses.dkd import dkd
from pipeline.distillation.losses.fitnet import FitNet
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.losses.mlkd import instance_level, low_confidence, mlkd
from pipeline.distillation.losses.reviewkd import ReviewKD
from pipeline.distillation.losses.standardize import standardize

__all__ = [
    "Attention",
    "FitNet",
    "ReviewKD",
    "batch_correlation",
    "class_correlation",
    "dist",
    "dkd",
    "instance_level",
    "kd",
    "low_confidence",
    "mlkd",
    "standardize",
]
