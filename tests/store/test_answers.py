"""The file of answers: what comes back, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.store.answers import SPLITS, Answers, FileAnswers, SplitAnswers

Arrays = dict[str, NDArray]


def split_answers(seed: int, count: int) -> SplitAnswers:
    generator = np.random.default_rng(seed)
    energy, uncertainty = generator.random((2, count), np.float32)
    return SplitAnswers(generator.random(count) < 0.9, energy, uncertainty)


def file_answers(seed: int) -> FileAnswers:
    return FileAnswers(split_answers(seed, 5), split_answers(seed + 100, 8))


KEYS = [("small_int8.onnx", "onnxruntime"), ("small_int8.onnx", "tensorrt"), ("small_fp32.xml", "openvino")]


def answers(*keys: tuple[str, str]) -> Answers:
    return Answers(file_answers(0), {key: file_answers(seed) for seed, key in enumerate(keys, 1)})


def assert_equal(found: Answers, expected: Answers) -> None:
    assert found.files.keys() == expected.files.keys()
    for key in (None, *expected.files):
        each, other = ((a.network if key is None else a.files[key]) for a in (found, expected))
        for split in SPLITS:
            for name, values in vars(getattr(other, split)).items():
                array = getattr(getattr(each, split), name)
                assert array.dtype == values.dtype
                np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("keys", [KEYS, []], ids=["files", "a teacher without a file"])
def test_answers_come_back_as_written(tmp_path: Path, keys: list[tuple[str, str]]) -> None:
    written = answers(*keys)
    written.write(tmp_path / "answers.npz")
    read = Answers.read(tmp_path / "answers.npz")
    assert_equal(read, written)
    assert list(read.files) == keys


def test_equal_answers_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    for name, keys in (("a", KEYS), ("b", KEYS), ("c", KEYS[:2])):
        answers(*keys).write(tmp_path / name)
    first, second, third = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != third


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def with_array(name: str, change: Callable[[NDArray], NDArray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: change(arrays[name])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("keys"), "keys"),
        (without("0/val/energy"), "0/val/energy"),
        (without("3/test/correct"), "3/test/correct"),
        (with_array("keys", lambda keys: keys[:, :1]), "not enough values"),
        (with_array("1/test/energy", lambda energy: energy[:-1]), r"1/test/energy is float32 \[7\]"),
        (with_array("1/test/uncertainty", lambda values: values[:, None]), r"uncertainty is float32 \[8, 1\]"),
        (with_array("2/val/energy", lambda energy: energy.astype(np.float64)), r"2/val/energy is float64 \[5\]"),
        (with_array("2/val/correct", lambda correct: correct.astype(np.int8)), r"2/val/correct is int8 \[5\]"),
        (with_array("0/val/correct", lambda correct: correct.astype(object)), "allow_pickle=False"),
    ],
)
def test_answers_that_are_not_whole_are_refused(tmp_path: Path, change: Callable[[Arrays], Arrays], words: str) -> None:
    path = tmp_path / "answers.npz"
    answers(*KEYS).write(path)
    with np.load(path) as arrays:
        changed = change(dict(arrays))
    np.savez_compressed(path, **changed)
    with pytest.raises(DataError, match=rf"answers\.npz is no archive of answers \(.*{words}.*\); remove it and run"):
        Answers.read(path)


@pytest.mark.parametrize("place", [0, 40, 60, 100, -300, -10])
def test_a_file_that_is_cut_short_or_has_a_wrong_byte_is_refused_or_read_as_it_was(tmp_path: Path, place: int) -> None:
    path = tmp_path / "answers.npz"
    answers(*KEYS).write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:place])
    with pytest.raises(
        DataError, match=r"answers\.npz is no archive of answers \(.*\); remove it and run `dvc repro`$"
    ):
        Answers.read(path)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place:][1:])
    try:
        read = Answers.read(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert_equal(read, answers(*KEYS))


def test_missing_answers_and_what_is_no_archive_are_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.npz"
    with pytest.raises(DataError, match=r"answers\.npz does not exist; run `dvc repro` to make it$"):
        Answers.read(path)
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(DataError, match=r"answers\.npz is no archive of answers"):
        Answers.read(path)
