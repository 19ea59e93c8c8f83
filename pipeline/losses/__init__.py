"""Base losses of distillation. Each returns one value per sample, [B]; the mean is taken once, by the caller.

Logit losses are functions. Their temperature is one number per sample, [B], or a float that stands for the constant
vector: "Energy X" is loss X called with energy temperatures, not a loss of its own. `standardize` z-scores the logits
for any of them.

Feature losses are modules with the signature `forward(student, teacher) -> [B]` on sequences of feature maps
[B, C, H, W]; the parameters of `FitNet` and `ReviewKD` are trained with the student's.
"""

from __future__ import annotations

from pipeline.losses.attention import Attention
from pipeline.losses.correlation import batch_correlation, class_correlation
from pipeline.losses.dist import dist
from pipeline.losses.dkd import dkd
from pipeline.losses.fitnet import FitNet
from pipeline.losses.kd import kd
from pipeline.losses.mlkd import instance_level, low_confidence, mlkd
from pipeline.losses.reviewkd import ReviewKD
from pipeline.losses.standardize import standardize

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
