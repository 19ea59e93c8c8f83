"""Crash checkpoints: the last epoch of a training, or the finished parts of scoring, from which a killed run goes on.

They are in a git-ignored folder that DVC does not know, under a hash of everything that decides the result. A change of
a parameter, the data set or that code gives another hash, so a run never goes on from the weights of another.
"""

import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from pipeline.compute.distributed import ALONE, World
from pipeline.errors import BusyError, TrainingError
from pipeline.portable.files import atomic_file
from pipeline.store.lock import exclusive
from pipeline.store.space import require_space
from pipeline.training.card import EpochRecord
from pipeline.training.weights import state_bytes

_FILE = "epoch.pt"
_FINISHED = "finished"
_SHARE = 0.015  # of the training time, at most, for storing all epochs but the last
_CODE = Path(__file__).parents[2]
_PACKAGES = ("models", "pipeline", "stages")
_KEY_LENGTH = 16  # hexadecimal digits
_STAGES = {
    "teacher": "train_teacher",
    "energy": "score_energy",
    "soft_labels": "store_soft_labels",
    "student": "distill",
}


@dataclass(frozen=True)
class TrainingState:
    """What a training changes.

    Attributes:
        average: the network with averaged weights; None without one.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None


class Checkpoint:
    """The last stored epoch of one run: weights, optimizer state, records and the best weights, in one file of torch.

    One file, so that a killed run never goes on with the best weights of epochs that it then trains anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = time.perf_counter()
        self._spent = self._latest = 0.0
        self._best: dict[str, Any] | None = None  # epoch and weights

    @property
    def worth_saving(self) -> bool:
        """Whether storing, with one more epoch, takes at most 1.5 % of the time since the checkpoint was opened.

        So a kill loses at most about 70 times the time that storing an epoch takes.
        """
        return self._spent + self._latest <= _SHARE * (time.perf_counter() - self._opened)

    def require_space(self, network: nn.Module, copies: int) -> None:
        """Raise a SpaceError if the disk cannot hold the stored epochs of this training.

        The epoch before stays until the next is written. The final weights and dvc's copy of them need no more.

        Args:
            copies: number of tensors that are stored for each weight.
        """
        stored = (self.folder / _FILE).stat().st_size if (self.folder / _FILE).exists() else 0
        needed = max(0, 2 * copies * state_bytes(network) - stored)
        require_space(self.folder / _FILE, needed, "the stored epochs of this training")

    def offer(
        self, state: TrainingState, records: Sequence[EpochRecord], *, last: bool, best: nn.Module | None = None
    ) -> None:
        """Store the epoch that has just ended if that is worth the time; the last one always.

        Args:
            best: network whose weights after the epoch with the highest validation top-1 (the first of equals) are
                kept as well, for :meth:`load_best`.
        """
        best_before = max((record.val_top1 for record in records[:-1]), default=-1.0)
        if best is not None and records[-1].val_top1 > best_before:
            weights = {name: value.detach().cpu().clone() for name, value in best.state_dict().items()}
            self._best = {"epoch": records[-1].epoch, "network": weights}
        if last or self.worth_saving:
            self.save(state, records)

    def load_best(self, network: nn.Module) -> int:
        """Put the best weights into the network and return their epoch; after the last epoch, which is always stored.

        Raises:
            TrainingError: the file is damaged.
        """
        best = _read(self.folder / _FILE)["best"]
        network.load_state_dict(best["network"])
        return int(best["epoch"])

    def save(self, state: TrainingState, records: Sequence[EpochRecord]) -> None:
        """Replace the stored epoch. Atomic: a kill leaves the one before."""
        started = time.perf_counter()
        content = {
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "average": None if state.average is None else state.average.state_dict(),
            "best": self._best,
            "records": [vars(record) for record in records],
        }
        _write(self.folder / _FILE, content)
        self._latest = time.perf_counter() - started
        self._spent += self._latest

    def restore(self, state: TrainingState) -> list[EpochRecord]:
        """Load the stored epoch into ``state``, and return its records; [] if there is none.

        Raises:
            TrainingError: the file is damaged.
        """
        path = self.folder / _FILE
        if not path.exists():
            return []
        stored = _read(path)
        try:
            records = [EpochRecord(**record) for record in stored["records"]]
            state.network.load_state_dict(stored["network"])
            _restore_optimizer(state.optimizer, stored["optimizer"])
            self._best = stored["best"]
            if state.average is not None:
                state.average.load_state_dict(stored["average"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _damaged(path, error) from None
        return records


def _write(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())  # torch.save itself raises no OSError on a full disk


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors on damaged files
        raise _damaged(path, error) from None
    if not isinstance(content, dict):
        raise _damaged(path, TypeError(f"it holds {type(content).__name__}"))
    return content


def _damaged(path: Path, reason: Exception) -> TrainingError:
    return TrainingError(f"checkpoint {path} is damaged ({type(reason).__name__}); delete it to train from the start")


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    optimizer.load_state_dict(dict(stored))
    # torch has put each tensor on the device of its parameter, and some in another type than they were stored in
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for number, values in stored["state"].items():
        state = optimizer.state[parameters[number]]
        state |= {name: state[name].to(value.dtype) for name, value in values.items() if isinstance(value, Tensor)}


@contextmanager
def crash_folder(
    root: Path,
    role: str,
    key_parts: Mapping[str, Any],
    work: str,
    world: World = ALONE,
    *,
    name: str | None = None,
    keep: bool = False,
) -> Iterator[Path]:
    """The locked folder for the finished parts of the run that ``key_parts`` describe.

    It is removed when the block ends without an error, or kept until the next run of its role and name ends.

    Args:
        root: folder of all checkpoints.
        role: teacher, energy, soft_labels or student; the folder's name begins with it, and with ``name``.
        key_parts: parameters and hashes of inputs, JSON-like, that decide the result. The hash of the code is added.
        work: the run in words, for the message that refuses a second one.
        world: the processes that share the folder. The first one holds the lock and removes the folder, so a barrier
            must follow the last use by another process.
        name: of the student.
        keep: for a stage. If dvc is killed before it records the outputs of a finished stage, the next dvc removes them
            and runs the stage again, which then finds everything here.

    Raises:
        BusyError: another process holds the folder.
    """
    key = hashlib.sha256(json.dumps([key_parts, code_hash(_STAGES[role])], sort_keys=True).encode()).hexdigest()
    run = role if name is None else f"{role}-{name}"
    folder = root / f"{run}-{key[:_KEY_LENGTH]}"
    with ExitStack() as held:
        with world.barrier():
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(root / f"{folder.name}.lock", work))
        yield folder
        if world.is_main and keep:
            (folder / _FINISHED).touch()
            remove_finished(root, run, folder)
        elif world.is_main:
            shutil.rmtree(folder)


def remove_finished(root: Path, run: str, kept: Path | None = None) -> None:
    """Remove the folders of finished runs of this role and name; unfinished runs may still be continued."""
    for marker in root.glob(f"{run}-{'[0-9a-f]' * _KEY_LENGTH}/{_FINISHED}"):
        if marker.parent != kept:
            with suppress(BusyError), exclusive(root / f"{marker.parent.name}.lock", "using these"):
                shutil.rmtree(marker.parent)


def code_hash(stage: str) -> str:
    """Hash of the code that decides a stage's numbers: the code that dvc.yaml lists for it.

    Other code (messages, the schema of the parameters, writing of files) changes no number, so a killed run goes on
    after a change there.
    """
    graph = YAML(typ="safe").load(_CODE / "dvc.yaml")["stages"]
    digest = hashlib.sha256()
    for dependency in graph[stage]["deps"]:
        if dependency.split("/")[0] in _PACKAGES:
            path = _CODE / dependency
            for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
                digest.update(file.relative_to(_CODE).as_posix().encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()
