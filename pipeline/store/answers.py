"""answers.npz: what a network and each of its files answered, image by image.

The report compares networks and files on the same images with it, and puts two files together to a cascade.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.portable.files import atomic_file
from pipeline.portable.text import brief

SPLITS = ("val", "test")
Key = tuple[str, str]  # name of a file, runtime
_TYPES = {"correct": np.bool_, "energy": np.float32, "uncertainty": np.float32}


@dataclass(frozen=True)
class SplitAnswers:
    """Answers to the N images of a split, in order.

    Attributes:
        correct: bool [N].
        energy: of the logits, float32 [N].
        uncertainty: one minus the largest softmax probability, float32 [N].
    """

    correct: NDArray[np.bool_]
    energy: NDArray[np.float32]
    uncertainty: NDArray[np.float32]


@dataclass(frozen=True)
class FileAnswers:
    """Answers to the validation and the test images."""

    val: SplitAnswers
    test: SplitAnswers


@dataclass(frozen=True)
class Answers:
    """Answers of a network in torch, in float32, and of its files in their runtimes."""

    network: FileAnswers
    files: Mapping[Key, FileAnswers]

    def write(self, path: Path) -> None:
        """Write the file atomically. Equal answers give equal bytes: numpy dates the members 1980."""
        arrays = {
            f"{number}/{split}/{name}": array
            for number, answers in enumerate((self.network, *self.files.values()))
            for split in SPLITS
            for name, array in vars(getattr(answers, split)).items()
        }
        keys = np.array(list(self.files), dtype=np.str_).reshape(-1, 2)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, keys=keys, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """The answers in a file whose hash is known to be right.

        Raises:
            DataError: it is missing or not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys = [(str(name), str(runtime)) for name, runtime in arrays["keys"]]
                network, *files = (
                    FileAnswers(*(_split_answers(arrays, f"{number}/{split}") for split in SPLITS))
                    for number in range(len(keys) + 1)
                )
        except FileNotFoundError:
            raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
        except Exception as error:  # numpy and zipfile raise many types of errors on damaged bytes
            raise DataError(
                f"{path} is no archive of answers ({brief(error)}); remove it and run `dvc repro`"
            ) from None
        return cls(network, dict(zip(keys, files, strict=True)))


def spread_over(total: int, wanted: int) -> NDArray[np.int64]:
    """``wanted`` evenly spaced indices below ``total``, the images that a device gets; all if there are fewer."""
    count = min(wanted, total)
    return np.arange(count, dtype=np.int64) * total // count


def _split_answers(arrays: Mapping[str, NDArray[Any]], prefix: str) -> SplitAnswers:
    """The answers under a prefix.

    Raises:
        KeyError, ValueError: an array is missing, or of another type or length.
    """
    found = {name: arrays[f"{prefix}/{name}"] for name in _TYPES}
    for name, array in found.items():
        if array.dtype != _TYPES[name] or array.shape != (len(found["correct"]),):
            raise ValueError(f"{prefix}/{name} is {array.dtype} {list(array.shape)}")
    return SplitAnswers(**found)
