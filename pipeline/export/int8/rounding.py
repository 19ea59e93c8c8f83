"""Weights rounded so that the layer's output changes least, not each weight.

An error made in rounding one weight is passed on to the weights of the same output channel that are not yet rounded, as
far as their inputs are correlated with its own: GPTQ (Frantar et al. 2022, arXiv 2210.17323), which needs no labels and
no gradients. The inputs are those that the quantised network itself computes for the calibration images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pipeline.export.int8.ranges import WEIGHT_LEVELS

MOST_INPUTS = 4608  # of one output: a 3x3 convolution of 512 channels; the moments of more would fill the memory
_ROWS = 2**15  # input patches that the moments are taken from, at most
_DAMPING = 0.01  # of the mean variance, for inputs that never vary
_BLOCK = 128  # weights of each channel whose errors are passed on at once


class Moments:
    """Covariance of the inputs of a layer, group by group, from values seen chunk by chunk."""

    def __init__(self, node: onnx.NodeProto, kernel: Sequence[int], images: int) -> None:
        """Args:
        node: Conv, Gemm or MatMul.
        kernel: height and width of a convolution's weights; empty for a matrix product.
        images: that will be seen.
        """
        self._attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self._groups = self._attributes.get("group", 1)
        self._kernel = tuple(kernel)
        self._patches = max(1, _ROWS // images)
        self._generator = np.random.default_rng(0)
        self._count = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._products: NDArray[np.float64] | float = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Values [n, C, H, W] of a convolution's input, or [..., I] of a matrix product's."""
        patches = self._rows(values)
        self._count += patches.shape[1]
        self._sum = self._sum + patches.sum(axis=1, dtype=np.float64)
        self._products = self._products + (patches.transpose(0, 2, 1) @ patches).astype(np.float64)

    def covariance(self) -> NDArray[np.float64]:
        """[groups, I, I]"""
        mean = np.asarray(self._sum) / self._count
        return np.asarray(self._products) / self._count - mean[:, :, None] * mean[:, None, :]

    def _rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[groups, rows, I]"""
        if not self._kernel:
            return values.reshape(1, -1, values.shape[-1])
        top, left, bottom, right = self._attributes.get("pads", (0, 0, 0, 0))
        (down, across), (tall, wide) = (
            self._attributes.get("strides", (1, 1)),
            self._attributes.get("dilations", (1, 1)),
        )
        height, width = ((size - 1) * step + 1 for size, step in zip(self._kernel, (tall, wide), strict=True))
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        windows = windows[:, :, ::down, ::across, ::tall, ::wide]
        images, channels, rows, columns = windows.shape[:4]
        chosen = self._generator.permutation(rows * columns)[: self._patches]
        patches = windows[:, :, chosen // columns, chosen % columns]  # [n, C, P, kh, kw]
        patches = patches.reshape(images, self._groups, channels // self._groups, len(chosen), -1)
        patches = patches.transpose(1, 0, 3, 2, 4)
        return patches.reshape(self._groups, images * len(chosen), -1)


def round_weights(
    weights: NDArray[np.float32], scales: NDArray[np.float32], covariance: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Weights [O, I] in steps of the scales [O], for inputs with this covariance [I, I]."""
    size = len(covariance)
    variances = np.diagonal(covariance)
    order = np.argsort(-variances, kind="stable")  # what matters most is rounded while most can still make up for it
    damped = covariance[np.ix_(order, order)] + (_DAMPING * variances.mean() + 1e-12) * np.eye(size)
    passing = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper triangular
    left = weights[:, order].astype(np.float64)
    steps = np.empty(left.shape, np.int8)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((len(left), stop - start))
        for index in range(start, stop):
            rounded = np.clip(np.rint(left[:, index] / scales), -WEIGHT_LEVELS, WEIGHT_LEVELS)
            steps[:, order[index]] = rounded
            error = (left[:, index] - rounded * scales) / passing[index, index]
            left[:, index:stop] -= np.outer(error, passing[index, index:stop])
            errors[:, index - start] = error
        left[:, stop:] -= errors @ passing[start:stop, stop:]
    return steps
