"""Crash checkpoints: the last epoch of a training, or the finished parts of scoring, from which a killed run goes on.

They are in a git-ignored folder that DVC does not know, under a hash of everything that decides the result. A change of
a parameter, the data set or that code gives another hash, so a run never goes on from the weights of another.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from pipeline.compute.distributed import ALONE, World
from pipeline.errors import BusyError, TrainingError
from pipeline.portable.files import atomic_file
from pipeline.store.lock import exclusive
from pipeline.store.space import require_space
from pipeline.training.card import EpochRecord
from pipeline.training.weights import state_bytes

_FILE, _BEST = "epoch.safetensors", "best.safetensors"
_FINISHED = "finished"
_SHARE = 0.015  # of the training time, at most, for storing all epochs but the last
_CODE = Path(__file__).parents[2]
_PACKAGES = ("models", "pipeline", "stages")
_STAGES = {"teacher": "train_teacher", "energy": "score_energy", "student": "distill"}


class Checkpoint:
    """The last stored epoch of one run: weights, optimizer state and records, in one safetensors file.

    Args:
        best_of: network whose weights after the epoch with the highest validation top-1 (the first of equals) are kept
            as well; it may be a part of the trained network.
    """

    def __init__(self, folder: Path, *, best_of: nn.Module | None = None) -> None:
        self.folder = folder
        self._best_of = best_of
        self._opened = time.perf_counter()
        self._spent = self._latest = 0.0

    @property
    def worth_saving(self) -> bool:
        """Whether storing, with one more epoch, takes at most 1.5 % of the time since the checkpoint was opened.

        So a kill loses at most about 70 times the time that storing an epoch takes.
        """
        return self._spent + self._latest <= _SHARE * (time.perf_counter() - self._opened)

    def require_space(self, network: nn.Module) -> None:
        """Raise a SpaceError if the disk cannot hold the stored epochs of this training.

        A stored epoch holds the weights and equally large momentum, and the one before stays until the next is written:
        4 times the weights. The final weights and dvc's copy of them need no more.
        """
        path = self.folder / _FILE
        stored = path.stat().st_size if path.exists() else 0
        require_space(path, max(0, 4 * state_bytes(network) - stored), "the stored epochs of this training")

    def offer(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, records: Sequence[EpochRecord], *, last: bool
    ) -> None:
        """Store the epoch that has just ended if that is worth the time; the last one always."""
        best_before = max((record.val_top1 for record in records[:-1]), default=-1.0)
        if self._best_of is not None and records[-1].val_top1 > best_before:
            plain = {name: value.detach().cpu().contiguous() for name, value in self._best_of.state_dict().items()}
            with atomic_file(self.folder / _BEST) as temporary:
                temporary.write_bytes(save(plain, metadata={"epoch": str(records[-1].epoch)}))
        if last or self.worth_saving:
            self.save(network, optimizer, records)

    def load_best(self, network: nn.Module) -> int:
        """Put the best weights into the network and return their epoch."""
        with safe_open(self.folder / _BEST, framework="pt") as file:
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return int(file.metadata()["epoch"])

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, records: Sequence[EpochRecord]) -> None:
        """Replace the stored epoch. Atomic: a kill leaves the one before."""
        started = time.perf_counter()
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items() if value is not None}
        # safetensors stores plain row-major memory; channels_last is put back by copying into the network
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with atomic_file(self.folder / _FILE) as temporary:
            # not save_file, which raises no OSError on a full disk
            temporary.write_bytes(save(plain, metadata={"records": json.dumps([vars(record) for record in records])}))
        self._latest = time.perf_counter() - started
        self._spent += self._latest

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[EpochRecord]:
        """Load the stored epoch into network and optimizer, and return its records; [] if there is none.

        Raises:
            TrainingError: the file is damaged.
        """
        path = self.folder / _FILE
        if not path.exists():
            return []
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
                records = [EpochRecord(**record) for record in json.loads(file.metadata()["records"])]
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise TrainingError(f"checkpoint {path} is damaged ({error}); delete it to train from the start") from None
        network.load_state_dict(
            {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
        )
        parameters = list(network.parameters())
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                # the fused optimizer goes through memory in order, so its state needs the parameter's memory format
                laid_out = torch.empty_like(parameters[int(number)]).copy_(value)
                state.setdefault(int(number), {})[key] = laid_out.detach()
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return records


@contextmanager
def crash_folder(
    root: Path, role: str, key_parts: Mapping[str, Any], work: str, world: World = ALONE, *, keep: bool = False
) -> Iterator[Path]:
    """The locked folder for the finished parts of the run that ``key_parts`` describe.

    It is removed when the block ends without an error, or kept until the next run of its role ends.

    Args:
        root: folder of all checkpoints.
        role: teacher, energy or student; the folder's name begins with it.
        key_parts: parameters and hashes of inputs, JSON-like, that decide the result. The hash of the code is added.
        work: the run in words, for the message that refuses a second one.
        world: the processes that share the folder. The first one holds the lock and removes the folder, so a barrier
            must follow the last use by another process.
        keep: for a stage. If dvc is killed before it records the outputs of a finished stage, the next dvc removes them
            and runs the stage again, which then finds everything here.

    Raises:
        BusyError: another process holds the folder.
    """
    key = hashlib.sha256(json.dumps([key_parts, code_hash(_STAGES[role])], sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{role}-{key}"
    with ExitStack() as held:
        with world.barrier():
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(root / f"{role}-{key}.lock", work))
        yield folder
        if world.is_main and keep:
            (folder / _FINISHED).touch()
            _remove_finished(root, role, folder)
        elif world.is_main:
            shutil.rmtree(folder)


def _remove_finished(root: Path, role: str, kept: Path) -> None:
    """Remove the folders of earlier finished runs; unfinished runs may still be continued."""
    for marker in root.glob(f"{role}-*/{_FINISHED}"):
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
