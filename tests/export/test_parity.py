"""Numbers of the comparison, and when it refuses a file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config import ParityParams
from pipeline.errors import ExportError
from pipeline.export.parity import check_energy, check_parity, fp32_limit
from pipeline.portable.accuracy import Outputs, compare_logits

LIMITS = ParityParams(images=8, fp32_max_abs=1e-4, max_top1_drop=0.1)
REFERENCE = np.float32([[2, 1, 0], [0, 3, 1], [1, 0, 1.5], [4, 0, 0]])
LABELS = REFERENCE.argmax(1)
LOGITS = arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32))


def test_numbers_of_a_known_difference() -> None:
    other = REFERENCE + np.float32([[0, 0, 0.5], [0, 0, 0], [1, 0, 0], [0, 0, -0.25]])
    parity = compare_logits(REFERENCE, other)
    assert parity.images == 4
    assert parity.max_abs == 1.0
    assert parity.mean_abs == pytest.approx(1.75 / 12)
    assert parity.top1_agreement == 0.75
    assert parity.largest_flipped_margin == 0.5
    a, b = REFERENCE.ravel().astype(float), other.ravel().astype(float)
    assert parity.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))


@given(LOGITS)
def test_a_file_agrees_with_itself(logits: np.ndarray) -> None:
    parity = compare_logits(logits, logits)
    assert (parity.max_abs, parity.mean_abs, parity.top1_agreement) == (0, 0, 1)
    assert parity.cosine == pytest.approx(1)
    assert parity.largest_flipped_margin is None


@given(LOGITS, LOGITS)
def test_numbers_stay_in_their_ranges(reference: np.ndarray, logits: np.ndarray) -> None:
    parity = compare_logits(reference, logits)
    assert 0 <= parity.mean_abs <= parity.max_abs <= 200
    assert -1 - 1e-9 <= parity.cosine <= 1 + 1e-9
    assert (parity.top1_agreement == 1) == (parity.largest_flipped_margin is None)
    if parity.largest_flipped_margin is not None:
        assert 0 <= parity.largest_flipped_margin <= 2 * parity.max_abs + 1e-9


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (12,)])
def test_other_shapes_cannot_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are expected"):
        compare_logits(REFERENCE, np.zeros(shape, np.float32))


def test_fp32_limit_is_plain_for_usual_logits_and_relative_for_large_ones() -> None:
    assert fp32_limit(REFERENCE, LIMITS) == 1e-4
    assert fp32_limit(10 * REFERENCE / 4, LIMITS) == 1e-4
    assert fp32_limit(100 * REFERENCE / 4, LIMITS) == pytest.approx(1e-3)


def test_fp32_file_beyond_the_limit_is_refused_although_all_answers_agree() -> None:
    assert (
        check_parity("a.onnx", "fp32", REFERENCE, REFERENCE + np.float32(9e-5), LABELS, LIMITS)[0].top1_agreement == 1
    )
    with pytest.raises(ExportError, match=r"^a\.onnx differs .* 0\.0003 .* limit of 0\.0001; .*fp32_max_abs$"):
        check_parity("a.onnx", "fp32", REFERENCE, REFERENCE + np.float32(3e-4), LABELS, LIMITS)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rounded_file_is_judged_by_its_accuracy(precision: str) -> None:
    reference, labels = np.tile(REFERENCE, (25, 1)), np.tile(LABELS, 25)
    parity, change = check_parity("a.onnx", precision, reference, 1.2 * reference, labels, LIMITS)
    assert parity.max_abs > 0.5
    assert change.value == 0 > change.low
    swapped = reference[:, [1, 0, 2]]
    with pytest.raises(ExportError, match=r"^a\.onnx loses 75\.0 points .* \(.*\), above the limit of 10; "):
        check_parity("a.onnx", precision, reference, swapped, labels, LIMITS)


def test_changed_answers_that_cost_no_accuracy_are_no_fault() -> None:
    reference = np.tile(REFERENCE, (25, 1))
    swapped = reference[:, [1, 0, 2]]
    labels = np.where(np.arange(100) < 48, reference.argmax(1), swapped.argmax(1))  # each is right for a half
    parity, change = check_parity("a.onnx", "int8", reference, swapped, labels, LIMITS)
    assert parity.top1_agreement < 0.5
    assert abs(change.value) < 0.1


def test_a_loss_that_chance_explains_is_no_fault() -> None:
    logits = REFERENCE.copy()
    logits[0] = logits[0, [1, 0, 2]]
    change = check_parity("a.onnx", "int8", REFERENCE, logits, LABELS, LIMITS)[1]
    assert change.value == -0.25
    assert change.high > -0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(precision: str, value: float) -> None:
    logits = REFERENCE.copy()
    logits[1, 0] = value
    with pytest.raises(ExportError, match=r"^a\.onnx: its logits are not finite for 1 of 4 images; "):
        check_parity("a.onnx", precision, REFERENCE, logits, LABELS, LIMITS)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(ExportError, match=r"^a\.onnx: its logits are \[4, 2\] where "):
        check_parity("a.onnx", "fp16", REFERENCE, REFERENCE[:, :2], LABELS, LIMITS)


def energy_of(logits: np.ndarray, temperature: float = 4.0) -> np.ndarray:
    return (-temperature * np.log(np.exp(logits.astype(float) / temperature).sum(axis=1))).astype(np.float32)


def test_energy_is_compared_with_that_of_the_network() -> None:
    logits = REFERENCE + np.float32([[0.5], [0], [0], [0]])
    found = check_energy("a.onnx", Outputs(logits, energy_of(logits)), REFERENCE, 4.0)
    assert found == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (None, "does not return one energy per image"),
        (energy_of(REFERENCE)[:3], "does not return one energy per image"),
        (energy_of(REFERENCE, 1.0), "differ by up to"),
        (np.full(4, np.nan, np.float32), "differ by up to nan"),
    ],
)
def test_a_file_whose_energy_is_not_that_of_its_own_logits_is_refused(energy: np.ndarray | None, message: str) -> None:
    with pytest.raises(ExportError, match=rf"^a\.onnx .*{message}"):
        check_energy("a.onnx", Outputs(REFERENCE, energy), REFERENCE, 4.0)
