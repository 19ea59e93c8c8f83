from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.portable.accuracy import (
    Expected,
    Outputs,
    compare_logits,
    pack_correct,
    paired_difference,
    score,
    unpack_correct,
)

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 5], [4, 0, 1]], dtype=np.float32)
EXPECTED = Expected(
    LOGITS, np.array([-3, -2, -5, -4], np.float32), np.array([0, 1, 1, 0]), np.array([0, 2, 2, -1], np.int8)
)


def save(path: Path, **changes: Any) -> Path:
    arrays = {name: array for name, array in (vars(EXPECTED) | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


def test_the_expected_outputs_themselves_are_at_parity() -> None:
    found = score(Outputs(LOGITS, EXPECTED.energy), EXPECTED)
    assert (found.images, found.top1, found.delta_top1) == (4, 0.75, 0.0)
    assert (found.top1_low_energy, found.top1_mid_energy, found.top1_high_energy) == (1.0, None, 0.5)
    assert (found.parity_max_abs, found.parity_mean_abs, found.energy_max_abs) == (0.0, 0.0, 0.0)
    assert found.parity_top1_agreement == 1.0
    assert found.delta_ci_low < 0 < found.delta_ci_high
    assert unpack_correct(found.correct, 4).tolist() == [True, True, False, True]


def test_a_changed_output_shows_in_each_number_it_concerns() -> None:
    changed = LOGITS.copy()
    changed[1] = [0, 2, 3]  # wrong now, in the high-energy group
    found = score(Outputs(changed, EXPECTED.energy + np.float32([0, 0.25, 0, 0])), EXPECTED)
    assert (found.top1, found.delta_top1, found.parity_top1_agreement) == (0.5, -0.25, 0.75)
    assert (found.top1_low_energy, found.top1_high_energy) == (1.0, 0.0)
    assert (found.delta_top1_low_energy, found.delta_top1_mid_energy, found.delta_top1_high_energy) == (0, None, -0.5)
    assert found.parity_max_abs == 2.0
    assert found.parity_mean_abs == pytest.approx(2 / 12)
    assert found.energy_max_abs == 0.25


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_the_answers_of_the_images_survive_their_packing(count: int) -> None:
    correct = np.random.default_rng(count).random(count) < 0.5
    text = pack_correct(correct)
    assert len(text) == 2 * -(-count // 8)
    found = unpack_correct(text, count)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, correct)


def test_the_first_image_is_the_highest_bit() -> None:
    assert pack_correct(np.array([True, *[False] * 9, True])) == "8020"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *[("", 1), ("80", 9), ("8000", 8), ("80", 0), ("80", -1), ("", -1), ("8", 4), ("", 10**30)],
        *[("81", 7), ("8020", 10), ("xy", 8), ("0x", 8), ("A0", 8), ("8 0", 8), (" 80", 8), ("80\n", 8), ("٨0", 8)],
    ],
)
def test_a_text_that_does_not_hold_one_bit_for_each_image_is_refused(text: str, count: int) -> None:
    with pytest.raises(
        ValueError, match=r"^correct (does not hold one bit for each of|has characters that are no hex)"
    ):
        unpack_correct(text, count)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct": ""}, "one bit for each of 4 images"),
        ({"correct": "d000"}, "one bit for each of 4 images"),
        ({"correct": "d1"}, "one bit for each of 4 images"),
        ({"correct": "zz"}, "no hexadecimal digits"),
        ({"images": 10**20}, "one bit for each of 1"),
        ({"correct": "f0"}, r"top1 is 0\.75, but 4 of 4 images are correct"),
        ({"top1": 0.75001}, r"top1 is 0\.75001, but 3 of 4"),
        ({"top1": 1.5}, r"top1 is 1\.5$"),
    ],
)
def test_an_accuracy_that_contradicts_the_answers_of_its_images_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    found = score(Outputs(LOGITS, None), EXPECTED)
    assert found.correct == "d0"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(found, **changes)


def test_a_file_without_energy_has_no_energy_difference() -> None:
    assert score(Outputs(LOGITS, None), EXPECTED).energy_max_abs is None


def test_the_intervals_are_those_of_matched_pairs_over_all_images_and_within_each_group() -> None:
    generator = np.random.default_rng(0)
    labels, groups = generator.integers(0, 5, 200), generator.integers(0, 3, 200).astype(np.int8)
    first, second = (generator.standard_normal((200, 5)).astype(np.float32) for _ in range(2))
    found = score(Outputs(first, None), Expected(second, np.zeros(200, np.float32), labels, groups))
    correct, reference = first.argmax(1) == labels, second.argmax(1) == labels
    wanted = paired_difference(correct, reference)
    assert (found.delta_top1, found.delta_ci_low, found.delta_ci_high) == (wanted.value, wanted.low, wanted.high)
    high = paired_difference(correct[groups == 2], reference[groups == 2])
    of_high = (found.delta_top1_high_energy, found.delta_high_energy_ci_low, found.delta_high_energy_ci_high)
    assert of_high == (high.value, high.low, high.high)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (LOGITS[:, :2], r"logits are \[4, 2\] where \[4, 3\] are expected"),
        (np.where(LOGITS == 5, np.nan, LOGITS), "not finite for 1 of 4 images"),
        (np.where(LOGITS == 0, np.inf, LOGITS), "not finite for 4 of 4 images"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(logits: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(Outputs(logits, None), EXPECTED)


@pytest.mark.parametrize("logits", [LOGITS[:, :2], LOGITS[0], LOGITS[:0]])
def test_logits_of_another_shape_are_not_compared(logits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="are expected"):
        compare_logits(LOGITS if logits.size else logits, logits)


def test_what_is_expected_survives_its_file_which_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in paths:
        with path.open("wb") as file:
            EXPECTED.save(file)
    found = Expected.load(paths[0])
    for name, array in vars(EXPECTED).items():
        np.testing.assert_array_equal(getattr(found, name), array)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "no archive of logits, energy, labels and groups"),
        ({"labels": EXPECTED.labels[:3]}, r"but has \[4, 3\], \[4\], \[3\], \[4\]"),
        ({"logits": LOGITS[0]}, r"needs logits \[N, K\]"),
    ],
)
def test_an_incomplete_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Expected.load(save(tmp_path / "expected.npz", **changes))


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "expected.npy", LOGITS)
    with pytest.raises(ValueError, match="no archive of logits"):
        Expected.load(tmp_path / "expected.npy")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "expected.npz").write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        Expected.load(tmp_path / "expected.npz")
