from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.benchmark.accuracy import Expected, answers_of, score
from pipeline.evaluation.accuracy import paired_difference
from pipeline.runtimes import Answers

LOGITS = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 5], [4, 0, 1]], dtype=np.float32)
EXPECTED = Expected(
    LOGITS, np.array([-3, -2, -5, -4], np.float32), np.array([0, 1, 1, 0]), np.array([0, 2, 2, -1], np.int8)
)


def save(path: Path, **changes: Any) -> Path:
    arrays = {"logits": LOGITS, "energy": EXPECTED.energy, "labels": EXPECTED.labels, "groups": EXPECTED.groups}
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


def test_the_expected_answers_themselves_are_at_parity() -> None:
    found = score(Answers(LOGITS, EXPECTED.energy), EXPECTED)
    assert (found["images"], found["top1"], found["top1_reference"], found["delta_top1"]) == (4, 0.75, 0.75, 0.0)
    assert (found["top1_low_energy"], found["top1_mid_energy"], found["top1_high_energy"]) == (1.0, None, 0.5)
    assert (found["parity_max_abs"], found["parity_mean_abs"], found["energy_max_abs"]) == (0.0, 0.0, 0.0)
    assert found["parity_top1_agreement"] == 1.0
    assert found["delta_ci_low"] < 0 < found["delta_ci_high"]


def test_a_changed_answer_shows_in_each_number_it_concerns() -> None:
    changed = LOGITS.copy()
    changed[1] = [0, 2, 3]  # wrong now, in the high-energy group
    found = score(Answers(changed, EXPECTED.energy + np.float32([0, 0.25, 0, 0])), EXPECTED)
    assert (found["top1"], found["delta_top1"], found["parity_top1_agreement"]) == (0.5, -0.25, 0.75)
    assert (found["top1_low_energy"], found["top1_high_energy"]) == (1.0, 0.0)
    assert found["parity_max_abs"] == 2.0
    assert found["parity_mean_abs"] == pytest.approx(2 / 12)
    assert found["energy_max_abs"] == 0.25


def test_a_file_without_energy_has_no_energy_difference() -> None:
    assert score(Answers(LOGITS, None), EXPECTED)["energy_max_abs"] is None


def test_the_interval_is_that_of_the_evaluation() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 200)
    first, second = (generator.standard_normal((200, 5)).astype(np.float32) for _ in range(2))
    found = score(Answers(first, None), Expected(second, np.zeros(200, np.float32), labels, np.zeros(200, np.int8)))
    wanted = paired_difference(first.argmax(1) == labels, second.argmax(1) == labels)
    assert (found["delta_top1"], found["delta_ci_low"], found["delta_ci_high"]) == pytest.approx(
        (wanted.value, wanted.low, wanted.high)
    )


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (LOGITS[:, :2], r"logits \[4, 2\], but expected are \[4, 3\]"),
        (np.where(LOGITS == 5, np.nan, LOGITS), "answers 1 of 4 images with numbers that are not finite"),
        (np.where(LOGITS == 0, np.inf, LOGITS), "answers 4 of 4 images with numbers that are not finite"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(logits: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(Answers(logits, None), EXPECTED)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_all_images_are_answered_once_in_batches_of_the_size_that_is_timed(batch: int) -> None:
    class Summing:
        def run(self, images: np.ndarray) -> Answers:
            assert len(images) == batch
            return Answers(images.sum(axis=(2, 3)), None)

    images = np.random.default_rng(0).standard_normal((6, 3, 2, 2)).astype(np.float32)
    found = answers_of(Summing(), images, batch)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.logits, images.sum(axis=(2, 3)))


def test_what_is_expected_survives_its_file(tmp_path: Path) -> None:
    found = Expected.load(save(tmp_path / "expected.npz"))
    for name in ("logits", "energy", "labels", "groups"):
        np.testing.assert_array_equal(getattr(found, name), getattr(EXPECTED, name))


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
