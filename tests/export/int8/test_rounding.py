"""Rounding of weights for the inputs that they meet."""

from __future__ import annotations

import numpy as np
import torch
from onnx import helper

from pipeline.export.int8.rounding import input_covariance, nearest, round_weights, weight_scales

GENERATOR = np.random.default_rng(0)


def alone(weights: np.ndarray, scales: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Rounded as the only group of a layer."""
    return round_weights(weights[None], scales[None], covariance[None], 64)[0]


def test_the_output_changes_less_than_by_rounding_each_weight_to_the_nearest() -> None:
    inputs = GENERATOR.normal(size=(2000, 30)) @ GENERATOR.normal(size=(30, 30))
    weights = GENERATOR.normal(size=(5, 30)).astype(np.float32)
    scales = weight_scales(weights, "minmax", 64) * 8
    covariance = np.cov(inputs.T, bias=True)

    def error(steps: np.ndarray) -> float:
        return float((((steps * scales[:, None] - weights) @ inputs.T) ** 2).mean())

    assert error(alone(weights, scales, covariance)) < 0.5 * error(nearest(weights, scales, 64))


def test_for_uncorrelated_inputs_it_is_the_nearest() -> None:
    weights = GENERATOR.normal(size=(5, 30)).astype(np.float32)
    scales = weight_scales(weights, "minmax", 64)
    assert np.array_equal(alone(weights, scales, np.eye(30)), nearest(weights, scales, 64))


def test_moments_of_a_convolution_are_those_of_its_patches() -> None:
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=2, pads=[1, 2, 1, 2], strides=[2, 1], dilations=[1, 2], kernel_shape=[3, 2]
    )
    values = GENERATOR.normal(size=(6, 4, 7, 8)).astype(np.float32)
    found = input_covariance(node, (3, 2), values)
    padded = torch.nn.functional.pad(torch.from_numpy(values), (2, 2, 1, 1))
    patches = torch.nn.functional.unfold(padded, (3, 2), dilation=(1, 2), stride=(2, 1)).numpy()
    for group, rows in enumerate(np.split(patches, 2, axis=1)):
        expected = np.cov(rows.transpose(0, 2, 1).reshape(-1, rows.shape[1]).T, bias=True)
        np.testing.assert_allclose(found[group], expected, atol=1e-5)


def test_the_groups_of_a_layer_are_rounded_each_for_its_own_inputs() -> None:
    weights = GENERATOR.normal(size=(3, 4, 9)).astype(np.float32)
    scales = np.abs(weights).max(axis=2) / 8
    covariance = np.stack([np.cov(GENERATOR.normal(size=(9, 9)) @ GENERATOR.normal(size=(9, 500))) for _ in range(3)])
    together = round_weights(weights, scales, covariance, 64)
    for group in range(3):
        assert np.array_equal(together[group], alone(weights[group], scales[group], covariance[group]))


def test_a_channel_that_is_always_0_is_rounded_to_the_nearest() -> None:
    inputs = GENERATOR.normal(size=(500, 6))
    inputs[:, 2] = 0
    weights = GENERATOR.normal(size=(5, 6)).astype(np.float32)
    scales = weight_scales(weights, "minmax", 64)
    rounded = alone(weights, scales, np.cov(inputs.T, bias=True))
    assert np.array_equal(rounded[:, 2], nearest(weights, scales, 64)[:, 2])
    assert np.isfinite(alone(weights, scales, np.zeros((6, 6))).astype(float)).all()
