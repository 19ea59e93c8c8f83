"""Ranges of activations and scales of weights."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.export.int8.ranges import Signed, Step, choose, histograms
from pipeline.export.int8.rounding import nearest, weight_scales

GENERATOR = np.random.default_rng(0)


def found(values: np.ndarray, signed: Signed, parts: int = 1, *, ends_only: bool = False) -> Step:
    chunks = [{"x": part} for part in np.array_split(values.astype(np.float32), parts)]
    return choose(histograms(["x"], lambda: iter(chunks), ends_only=ends_only)["x"], signed)


def squared_error(values: np.ndarray, step: Step) -> float:
    return float(((step.rounded(values) - values) ** 2).mean())


@pytest.mark.parametrize("signed", ["never", "balanced", "always"])
def test_one_outlier_does_not_set_the_range_of_activations(signed: Signed) -> None:
    values = GENERATOR.laplace(size=400_000).astype(np.float32)
    values[0] = 40
    whole = found(values, signed, ends_only=True)
    assert whole.rounded(values[:1])[0] == pytest.approx(40, rel=0.01)
    inliers = values[1:]
    assert squared_error(inliers, found(values, signed)) < 0.8 * squared_error(inliers, whole)


def test_bytes_of_values_that_are_never_negative_begin_at_0() -> None:
    values = np.maximum(GENERATOR.normal(size=5000), 0)
    for signed in ("never", "balanced"):
        step = found(values, signed)
        assert (step.zero_point, step.lowest, step.highest) == (0, 0, 255)
    assert found(values, "always").lowest == -128


def test_bytes_of_values_with_a_small_negative_part_are_shifted_and_not_signed() -> None:
    values = GENERATOR.normal(size=5000) * 3
    values *= 1 / (1 + np.exp(-values))  # swish: at least -0.28
    shifted, signed = found(values, "never"), found(values, "always")
    assert shifted == found(values, "balanced")
    assert 1 <= shifted.zero_point <= 40
    assert (signed.zero_point, signed.lowest, signed.highest) == (0, -128, 127)
    assert squared_error(values, shifted) < squared_error(values, signed)


def test_bytes_of_values_of_both_signs_are_signed_where_that_is_asked() -> None:
    values = GENERATOR.normal(size=5000)
    assert (found(values, "balanced").zero_point, found(values, "balanced").lowest) == (0, -128)
    assert 100 < found(values, "never").zero_point < 156


def test_range_does_not_depend_on_how_the_images_are_divided() -> None:
    values = GENERATOR.normal(size=(40, 100))
    assert found(values, "never") == found(values, "never", parts=8)


def test_tensors_of_zeros_and_of_one_value_have_a_scale() -> None:
    for signed in ("never", "balanced", "always"):
        assert found(np.zeros(3), signed).scale == 1
        for value in (-3.0, 2.0):
            assert found(np.full(3, value), signed).rounded(np.float32([value]))[0] == pytest.approx(value, rel=0.01)
    assert np.isfinite(weight_scales(np.zeros((2, 3), np.float32), "error", 64)).all()


@pytest.mark.parametrize("method", ["minmax", "error"])
@pytest.mark.parametrize("levels", [64, 127])
def test_weights_have_a_scale_per_row_and_all_levels(method: str, levels: int) -> None:
    weights = GENERATOR.normal(size=(4, 200)).astype(np.float32) * np.float32([[1], [10], [0.1], [3]])
    scales = weight_scales(weights, method, levels)
    steps = nearest(weights, scales, levels)
    assert scales.shape == (4,)
    assert np.abs(steps.astype(int)).max() == levels
    assert np.abs(steps * scales[:, None] - weights).mean(axis=1) == pytest.approx(scales / 4, rel=0.2)


def test_searched_ranges_of_weights_are_no_worse_than_the_largest_magnitude() -> None:
    weights = np.random.default_rng(0).standard_t(5, size=(8, 3000)).astype(np.float32)

    def error(method: str) -> np.ndarray:
        scales = weight_scales(weights, method, 64)
        return ((nearest(weights, scales, 64) * scales[:, None] - weights) ** 2).sum(axis=1)

    assert (error("error") <= error("minmax")).all()
    assert error("error").sum() < 0.95 * error("minmax").sum()
