"""Quantisation scales of activations and weights, and rounding of weights to int8.

Scales: the largest magnitude is a poor range, because one outlier makes the steps of all other values coarse. Instead,
a search finds the range with the least sum of |value - quantised value|^p. For weights p = 2. For activations p = 2.4,
as in the released code of BRECQ (Li et al. 2021, arXiv 2102.05426): large activations are rare but important. Any p
between 2 and 3 gives almost the same result.

Rounding follows GPTQ (Frantar et al. 2022, arXiv 2210.17323), which needs no labels and no gradients. It minimises the
error of the layer's output, not of each weight: the weights of the same output channel that are not rounded yet
compensate the rounding error of a weight, as far as their inputs correlate. The inputs are those of the quantised
network on the calibration images.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

ACTIVATION_LEVELS = 127  # on each side of zero
WEIGHT_LEVELS = 64  # 7 of 8 bits, see quantize.py
_POWER = 2.4
_BINS = 8192
_CLIP = np.linspace(0.3, 1, 71)  # candidate ranges, as shares of the largest magnitude
MOST_INPUTS = 4608  # per output value: 3x3 convolution, 512 channels; a larger covariance needs too much memory
_ROWS = 2**15  # largest number of input patches for the covariance
_DAMPING = 0.01  # share of the mean variance added to each variance, because some inputs are constant
_BLOCK = 128  # weights per channel that are rounded before the later weights are updated


def activation_scales(
    largest: Mapping[str, float], chunks: Iterable[Mapping[str, NDArray[np.float32]]], method: str
) -> dict[str, float]:
    """Choose one scale per tensor, the step between two of 255 levels.

    Args:
        largest: tensor -> largest magnitude over all chunks.
        chunks: tensor -> values, for a few images at a time.
        method: ``error`` searches the range of least error, ``minmax`` takes the largest magnitude.
    """
    if method == "minmax":
        return {name: magnitude / ACTIVATION_LEVELS or 1.0 for name, magnitude in largest.items()}
    # histograms of |value|: memory does not grow with the number of images
    counts = {name: np.zeros(_BINS, np.int64) for name in largest}
    for chunk in chunks:
        for name, magnitude in largest.items():
            nonzero = np.abs(chunk[name][chunk[name] != 0])  # zeros have no error in any range
            bins = np.minimum((nonzero * (_BINS / max(magnitude, 1e-30))).astype(np.int64), _BINS - 1)
            counts[name] += np.bincount(bins, minlength=_BINS)
    return {name: _scale_of_least_error(magnitude, counts[name]) for name, magnitude in largest.items()}


def _scale_of_least_error(largest: float, counts: NDArray[np.int64]) -> float:
    if largest == 0:
        return 1.0
    used_bins = np.flatnonzero(counts)
    values = (used_bins + 0.5) * (largest / _BINS)
    costs = []
    for clip in _CLIP:
        scale = clip * largest / ACTIVATION_LEVELS
        rounded = scale * np.minimum(np.rint(values / scale), ACTIVATION_LEVELS)
        costs.append(float(counts[used_bins] @ np.abs(rounded - values) ** _POWER))
    return float(_CLIP[int(np.argmin(costs))] * largest / ACTIVATION_LEVELS)


def weight_scales(weights: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """Choose one scale per row of weights [O, I]; ``method`` as for activations. Returns float32 [O]."""
    largest = np.abs(weights).max(axis=1)
    largest[largest == 0] = 1.0
    if method == "minmax":
        return np.asarray(largest / WEIGHT_LEVELS, np.float32)
    costs = []
    for clip in _CLIP:
        scales = (clip * largest / WEIGHT_LEVELS)[:, None]
        rounded = scales * np.clip(np.rint(weights / scales), -WEIGHT_LEVELS, WEIGHT_LEVELS)
        costs.append(((rounded - weights) ** 2).sum(axis=1))
    return np.asarray(_CLIP[np.argmin(costs, axis=0)] * largest / WEIGHT_LEVELS, np.float32)


def nearest(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Round weights [O, I] to the nearest int8 multiples of the scales [O]."""
    return np.asarray(np.clip(np.rint(weights / scales[:, None]), -WEIGHT_LEVELS, WEIGHT_LEVELS), np.int8)


class Moments:
    """Covariance of the inputs of a layer in each group, accumulated over chunks of images.

    Args:
        node: Conv, Gemm or MatMul.
        kernel: height and width of a convolution's weights; empty for a matrix product.
        images: number of images in all chunks.
    """

    def __init__(self, node: onnx.NodeProto, kernel: Sequence[int], images: int) -> None:
        self._attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._groups = self._attributes.get("group", 1)
        self._kernel = tuple(kernel)
        self._patches = max(1, _ROWS // images)
        self._generator = np.random.default_rng(0)
        self._count = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._products: NDArray[np.float64] | float = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Add the input values [n, C, H, W] of a convolution, or [..., I] of a matrix product."""
        patches = self._rows(values)
        self._count += patches.shape[1]
        self._sum = self._sum + patches.sum(axis=1, dtype=np.float64)
        self._products = self._products + (patches.transpose(0, 2, 1) @ patches).astype(np.float64)

    def covariance(self) -> NDArray[np.float64]:
        """Covariance matrices, [groups, I, I]."""
        mean = np.asarray(self._sum) / self._count
        return np.asarray(self._products) / self._count - mean[:, :, None] * mean[:, None, :]

    def _rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Input patches, [groups, rows, I]."""
        if not self._kernel:
            return values.reshape(1, -1, values.shape[-1])
        top, left, bottom, right = self._attributes.get("pads", (0, 0, 0, 0))
        down, across = self._attributes.get("strides", (1, 1))
        tall, wide = self._attributes.get("dilations", (1, 1))
        height, width = (self._kernel[0] - 1) * tall + 1, (self._kernel[1] - 1) * wide + 1
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        windows = windows[:, :, ::down, ::across, ::tall, ::wide]
        images, channels, rows, columns = windows.shape[:4]
        chosen = self._generator.permutation(rows * columns)[: self._patches]
        patches = windows[:, :, chosen // columns, chosen % columns]  # [n, C, P, kh, kw]
        patches = patches.reshape(images, self._groups, channels // self._groups, len(chosen), -1)
        return patches.transpose(1, 0, 3, 2, 4).reshape(self._groups, images * len(chosen), -1)


def round_weights(
    weights: NDArray[np.float32], scales: NDArray[np.float32], covariance: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Round weights [O, I] to int8 multiples of the scales [O] by GPTQ; ``covariance`` [I, I] is that of the inputs."""
    size = len(covariance)
    variances = np.diagonal(covariance)
    order = np.argsort(-variances, kind="stable")  # largest variance first: later weights compensate its error
    damped = covariance[np.ix_(order, order)] + (_DAMPING * variances.mean() + 1e-12) * np.eye(size)
    propagation = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper triangular
    remaining = weights[:, order].astype(np.float64)
    steps = np.empty(remaining.shape, np.int8)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((len(remaining), stop - start))
        for index in range(start, stop):
            rounded = np.clip(np.rint(remaining[:, index] / scales), -WEIGHT_LEVELS, WEIGHT_LEVELS)
            steps[:, order[index]] = rounded
            error = (remaining[:, index] - rounded * scales) / propagation[index, index]
            remaining[:, index:stop] -= np.outer(error, propagation[index, index:stop])
            errors[:, index - start] = error
        remaining[:, stop:] -= errors @ propagation[start:stop, stop:]
    return steps
