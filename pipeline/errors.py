"""The errors a user can meet. Each message is one sentence that says what is wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class EnergyKDError(Exception):
    """Base of all errors caused by input, not by a defect; a stage prints the message and exits with code 2."""


class ParamsError(EnergyKDError):
    """params.yaml holds an unknown key, a value out of range or a contradiction."""


class DataError(EnergyKDError):
    """The images cannot be used: a folder is missing, a class is too small, a file is truncated."""


class NoImagesError(DataError):
    """The folder of the images is not there at all."""


class CheckpointError(EnergyKDError):
    """A weights file does not fit the network or cannot be read safely."""


class SpaceError(EnergyKDError):
    """A disk or the shared memory has no space for what is to be written."""


class LineageError(EnergyKDError):
    """Files of two different runs were mixed."""


class TrainingError(EnergyKDError):
    """Training cannot go on, for example because the loss is no longer finite."""


class BusyError(EnergyKDError):
    """Another process does the same work in the same folder."""


class StoppedError(EnergyKDError):
    """Another process of the same stage failed; the first process shows its error."""


class ExportError(EnergyKDError):
    """An exported file failed one of its checks."""


class BudgetError(EnergyKDError):
    """No exported file is within the budget."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Messages of errors that are raised in the block begin with ``where``, for code that does not know it."""
    try:
        yield
    except EnergyKDError as error:
        raise type(error)(f"{where}{error}") from None
