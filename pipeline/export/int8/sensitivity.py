"""Which layers stay in float32: those whose quantisation damages the logits most, as far as their cost allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.export.int8.layers import Layer, observe
from pipeline.export.int8.qdq import Scheme, insert_pairs

_IMAGES = 64


def damages(
    model: onnx.ModelProto, layers: Sequence[Layer], scheme: Scheme, images: NDArray[np.float32]
) -> dict[str, float]:
    """Variance of the error of the logits if one layer alone is quantised, for each layer.

    The mean error of each logit is left out, because the biases make up for it later.

    Args:
        images: float32 [n, 3, S, S]; 64 of them, evenly spaced, are used.
    """
    chosen = images[(np.arange(min(_IMAGES, len(images))) * len(images)) // min(_IMAGES, len(images))]
    everything = {layer.name for layer in layers}
    reference = _logits(model, chosen)
    found = {}
    for layer in layers:
        alone = insert_pairs(model, layers, scheme, everything - {layer.name})
        found[layer.name] = float((_logits(alone, chosen) - reference).var(axis=0).mean())
    return found


def float_layers(damage: Mapping[str, float], costs: Mapping[str, int], share: float) -> tuple[str, ...]:
    """The layers that stand out, in the order of computation: with more than the mean damage.

    The worst come first, and a layer stays quantised if it would take the multiply-adds in float32 above ``share`` of
    all. Layers below the mean gain little each, so a network is not filled up with them because there is room.

    Args:
        damage: of each layer.
        costs: multiply-adds of each layer for one image.
    """
    left = share * sum(costs.values())
    mean = sum(damage.values()) / max(len(damage), 1)
    kept = set()
    for name in sorted(damage, key=lambda name: -damage[name]):
        if damage[name] > mean and costs[name] <= left:
            kept.add(name)
            left -= costs[name]
    return tuple(name for name in damage if name in kept)


def _logits(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([chunk[0] for chunk in observe(model, [model.graph.output[0].name], images)])
