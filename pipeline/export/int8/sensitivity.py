"""Choice of the layers that stay in float32: largest quantisation error of the logits, limited by their cost."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.export.int8.layers import Layer, observe
from pipeline.export.int8.qdq import Scheme, insert_qdq

_IMAGES = 64


def sensitivity(
    model: onnx.ModelProto, layers: Sequence[Layer], scheme: Scheme, images: NDArray[np.float32]
) -> dict[str, float]:
    """Quantise one layer at a time; return layer -> variance of the error of the logits.

    The mean error of each logit does not count, because the bias correction removes it later.

    Args:
        images: float32 [n, 3, S, S]; 64 of them, evenly spaced, are used.
    """
    count = min(_IMAGES, len(images))
    chosen = images[np.arange(count) * len(images) // count]
    names = {layer.name for layer in layers}
    reference = _logits(model, chosen)
    return {
        name: float((_logits(insert_qdq(model, layers, scheme, names - {name}), chosen) - reference).var(axis=0).mean())
        for name in (layer.name for layer in layers)
    }


def choose_fp32_layers(damage: Mapping[str, float], costs: Mapping[str, int], share: float) -> tuple[str, ...]:
    """Choose layers with more than the mean damage, largest damage first; return them in the order of computation.

    A layer stays quantised if the multiply-adds in float32 would exceed ``share`` of all. Layers below the mean stay
    quantised even within the share, because each of them gains little.

    Args:
        damage: layer -> variance from :func:`sensitivity`.
        costs: layer -> multiply-adds for one image.
    """
    budget = share * sum(costs.values())
    mean = sum(damage.values()) / max(len(damage), 1)
    chosen = set()
    for name in sorted(damage, key=lambda name: -damage[name]):
        if damage[name] > mean and costs[name] <= budget:
            chosen.add(name)
            budget -= costs[name]
    return tuple(name for name in damage if name in chosen)


def _logits(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([chunk[0] for chunk in observe(model, [model.graph.output[0].name], images)])
