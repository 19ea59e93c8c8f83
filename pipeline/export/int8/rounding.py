"""Quantisation scales of weights, and rounding of weights to int8.

``levels`` is the largest magnitude of a weight: 127 for 8 bits, 64 for 7.

Rounding follows GPTQ (Frantar et al. 2022, arXiv 2210.17323), which needs no labels and no gradients. It minimises the
error of the layer's output, not of each weight: the weights of the same output channel that are not rounded yet
compensate the rounding error of a weight, as far as their inputs correlate. The inputs are those of the quantised
network on the calibration images.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

_CLIP = np.linspace(0.3, 1, 71)  # candidate ranges, as shares of the largest magnitude
MOST_INPUTS = 4608  # per output value: 3x3 convolution, 512 channels; a larger covariance needs too much memory
_ROWS = 2**15  # largest number of input patches for the covariance
_DAMPING = 0.01  # share of the mean variance added to each variance, because some inputs are constant
_BLOCK = 128  # weights per channel that are rounded before the later weights are updated


def weight_scales(weights: NDArray[np.float32], method: str, levels: int) -> NDArray[np.float32]:
    """Choose one scale per row of weights [O, I], float32 [O].

    Args:
        method: ``error`` searches the range of least squared error, ``minmax`` takes the largest magnitude.
    """
    largest = np.abs(weights).max(axis=1)
    largest[largest == 0] = 1.0
    if method == "minmax":
        return np.asarray(largest / levels, np.float32)
    costs = []
    for clip in _CLIP:
        scales = (clip * largest / levels)[:, None]
        rounded = scales * np.clip(np.rint(weights / scales), -levels, levels)
        costs.append(((rounded - weights) ** 2).sum(axis=1))
    return np.asarray(_CLIP[np.argmin(costs, axis=0)] * largest / levels, np.float32)


def nearest(weights: NDArray[np.float32], scales: NDArray[np.float32], levels: int) -> NDArray[np.int8]:
    """Round weights [O, I] to the nearest int8 multiples of the scales [O]."""
    return np.asarray(np.clip(np.rint(weights / scales[:, None]), -levels, levels), np.int8)


def input_covariance(node: onnx.NodeProto, kernel: Sequence[int], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Covariance of the inputs of each output value, [groups, I, I].

    Args:
        node: Conv, Gemm or MatMul.
        kernel: height and width of a convolution's weights; empty for a matrix product.
        values: input of the node, [n, C, H, W] of a convolution, or [..., I] of a matrix product.
    """
    rows = _patches(node, kernel, values) if kernel else values.reshape(1, -1, values.shape[-1])
    centred = rows - rows.mean(axis=1, keepdims=True)
    covariance: NDArray[np.float64] = (centred.transpose(0, 2, 1) @ centred).astype(np.float64) / rows.shape[1]
    return covariance


def _patches(node: onnx.NodeProto, kernel: Sequence[int], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Input patches of a convolution, [groups, rows, I]: all, or the same share of each image, drawn."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups = attributes.get("group", 1)
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    down, across = attributes.get("strides", (1, 1))
    tall, wide = attributes.get("dilations", (1, 1))
    height, width = (kernel[0] - 1) * tall + 1, (kernel[1] - 1) * wide + 1
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    windows = windows[:, :, ::down, ::across, ::tall, ::wide]
    images, channels, rows, columns = windows.shape[:4]
    chosen = np.random.default_rng(0).permutation(rows * columns)[: max(1, _ROWS // images)]
    patches = windows[:, :, chosen // columns, chosen % columns]  # [n, C, P, kh, kw]
    patches = patches.reshape(images, groups, channels // groups, len(chosen), -1)
    return patches.transpose(1, 0, 3, 2, 4).reshape(groups, images * len(chosen), -1)


def round_weights(
    weights: NDArray[np.float32], scales: NDArray[np.float32], covariance: NDArray[np.float64], levels: int
) -> NDArray[np.int8]:
    """Round weights to int8 multiples of their scales by GPTQ, all groups of a layer at once.

    Args:
        weights: [groups, O, I].
        scales: [groups, O].
        covariance: [groups, I, I], of the inputs.
    """
    size = covariance.shape[-1]
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    # the largest variance first: later weights compensate its error
    order = np.argsort(-variances, axis=1, kind="stable")
    sorted_covariance = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    damping = _DAMPING * variances.mean(axis=1) + 1e-12
    damped = sorted_covariance + damping[:, None, None] * np.eye(size)
    propagation = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)  # upper triangular
    remaining = np.take_along_axis(weights, order[:, None, :], 2).astype(np.float64)
    rounded = np.empty(remaining.shape, np.int8)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((*remaining.shape[:2], stop - start))
        for index in range(start, stop):
            level = np.clip(np.rint(remaining[:, :, index] / scales), -levels, levels)
            rounded[:, :, index] = level
            error = (remaining[:, :, index] - level * scales) / propagation[:, None, index, index]
            remaining[:, :, index:stop] -= error[:, :, None] * propagation[:, None, index, index:stop]
            errors[:, :, index - start] = error
        remaining[:, :, stop:] -= errors @ propagation[:, start:stop, stop:]
    result = np.empty_like(rounded)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], rounded.shape), rounded, 2)
    return result
