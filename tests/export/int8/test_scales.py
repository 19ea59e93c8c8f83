"""Scales of activations and weights."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.export.int8.rounding import activation_scales, nearest, weight_scales

GENERATOR = np.random.default_rng(0)


def squared_error(values: np.ndarray, scale: float) -> float:
    return float(((scale * np.clip(np.rint(values / scale), -127, 127) - values) ** 2).mean())


def test_one_outlier_does_not_set_the_range_of_activations() -> None:
    values = GENERATOR.laplace(size=400_000).astype(np.float32)
    values[0] = 40
    found = {
        method: activation_scales({"x": float(np.abs(values).max())}, [{"x": values}], method)["x"]
        for method in ("minmax", "error")
    }
    assert found["minmax"] == pytest.approx(40 / 127)
    inliers = values[1:]
    assert squared_error(inliers, found["error"]) < 0.6 * squared_error(inliers, found["minmax"])


def test_range_does_not_depend_on_how_the_images_are_divided() -> None:
    values = GENERATOR.normal(size=(40, 100)).astype(np.float32)
    largest = {"x": float(np.abs(values).max())}
    whole, parts = ([{"x": values}], [{"x": part} for part in np.split(values, 8)])
    assert activation_scales(largest, whole, "error") == activation_scales(largest, parts, "error")


def test_a_tensor_of_zeros_has_a_scale() -> None:
    assert activation_scales({"x": 0.0}, [{"x": np.zeros(3, np.float32)}], "error") == {"x": 1.0}
    assert np.isfinite(weight_scales(np.zeros((2, 3), np.float32), "error")).all()


@pytest.mark.parametrize("method", ["minmax", "error"])
def test_weights_have_a_scale_per_row_and_seven_bits(method: str) -> None:
    weights = GENERATOR.normal(size=(4, 200)).astype(np.float32) * np.float32([[1], [10], [0.1], [3]])
    scales = weight_scales(weights, method)
    steps = nearest(weights, scales)
    assert scales.shape == (4,)
    assert np.abs(steps.astype(int)).max() == 64
    assert np.abs(steps * scales[:, None] - weights).mean(axis=1) == pytest.approx(scales / 4, rel=0.2)


def test_searched_ranges_of_weights_are_no_worse_than_the_largest_magnitude() -> None:
    weights = GENERATOR.laplace(size=(8, 3000)).astype(np.float32)

    def error(method: str) -> np.ndarray:
        scales = weight_scales(weights, method)
        return ((nearest(weights, scales) * scales[:, None] - weights) ** 2).sum(axis=1)

    assert (error("error") <= error("minmax")).all()
    assert error("error").sum() < 0.95 * error("minmax").sum()
