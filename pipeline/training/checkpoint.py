"""What a killed run has finished: crash checkpoints of training, and the folder that any long pass keeps its parts in.

They lie in a git-ignored folder that DVC does not know, under a key made of all that decides the result. A changed
parameter, data set or line of the code that computes is another key, so old weights never go on as new; the same key
goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
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
from pipeline.store.atomic import atomic_file
from pipeline.store.lock import exclusive
from pipeline.store.space import require_space
from pipeline.training.weights import state_bytes

_FILE = "epoch.safetensors"
_FINISHED = "finished"
_SHARE = 0.015  # of the training time, for storing epochs but the last
_CODE = Path(__file__).parents[2]
_PACKAGES = ("models", "pipeline", "stages")
_STAGES = {"teacher": "train_teacher", "energy": "score_energy", "student": "distill"}


class Checkpoint:
    """The last stored epoch of one run: weights, optimizer state and records, in one safetensors file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = time.perf_counter()
        self._spent = self._latest = 0.0

    @property
    def worth_saving(self) -> bool:
        """Whether another epoch can be stored and storing still takes at most 1.5 % of the time since it was opened.

        Epochs of a second would otherwise cost more; what a kill can then lose is about 70 times what storing takes.
        """
        return self._spent + self._latest <= _SHARE * (time.perf_counter() - self._opened)

    def require_space(self, network: nn.Module) -> None:
        """Refuse a training whose epochs the disk cannot hold.

        An epoch is the weights and as much momentum; the one before is there until the next is written. Twice that,
        once the last is stored, is also what the weights and dvc's copy of them take.

        Raises:
            SpaceError: as said.
        """
        path = self.folder / _FILE
        stored = path.stat().st_size if path.exists() else 0
        require_space(path, max(0, 4 * state_bytes(network) - stored), "the stored epochs of this training")

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, records: list[dict[str, Any]]) -> None:
        """Replace the stored epoch. Atomic: a kill leaves the one before."""
        started = time.perf_counter()
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items() if value is not None}
        # safetensors stores plain row-major memory; channels_last is put back by copying into the network
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with atomic_file(self.folder / _FILE) as temporary:
            # not save_file: on a full disk its error is not the system's
            temporary.write_bytes(save(plain, metadata={"records": json.dumps(records)}))
        self._latest = time.perf_counter() - started
        self._spent += self._latest

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
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
                records: list[dict[str, Any]] = json.loads(file.metadata()["records"])
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
                # the fused optimizer walks memory in order, so its state must lie in memory as its parameter does
                laid_out = torch.empty_like(parameters[int(number)]).copy_(value)
                state.setdefault(int(number), {})[key] = laid_out.detach()
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return records


@contextmanager
def open_checkpoint(
    root: Path, role: str, decides: Mapping[str, Any], world: World = ALONE, *, keep: bool = False
) -> Iterator[Checkpoint]:
    """The checkpoint of the run that ``decides`` describes, locked; the rest as for :func:`crash_folder`.

    Args:
        root: folder of all checkpoints.
        role: teacher or student.
        decides: parameters and hashes of inputs, JSON-like. The code of the repository is added here.

    Raises:
        BusyError: another process is training the same run.
    """
    with crash_folder(root, role, decides, f"training this {role}", world, keep=keep) as folder:
        yield Checkpoint(folder)


@contextmanager
def crash_folder(
    root: Path, role: str, decides: Mapping[str, Any], work: str, world: World = ALONE, *, keep: bool = False
) -> Iterator[Path]:
    """The folder for what the run that ``decides`` describes has finished, locked.

    When the block ends well it is removed, or kept until the next run of its role ends well.

    Args:
        root, decides: as for :func:`open_checkpoint`.
        role: teacher, energy or student: what the folder's name begins with.
        work: what the run does, for the sentence that refuses a second one.
        world: the processes that share the folder; the first one holds the lock and removes the folder, so all must
            have met after the last use by another.
        keep: for a stage. A dvc that is killed after the stage ended, or whose stage ended without it, has not taken
            note of the outputs: the next one removes them and runs the stage again, which then finds all of it here.

    Raises:
        BusyError: another run does the same.
    """
    key = hashlib.sha256(json.dumps([decides, code_hash(_STAGES[role])], sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{role}-{key}"
    with ExitStack() as held:
        with world.together():
            if world.first:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(root / f"{role}-{key}.lock", work))
        yield folder
        if world.first and keep:
            (folder / _FINISHED).touch()
            _remove_finished(root, role, folder)
        elif world.first:
            shutil.rmtree(folder)


def _remove_finished(root: Path, role: str, kept: Path) -> None:
    """Of what finished runs left, only the last one's is of use; unfinished ones may go on some day."""
    for marker in root.glob(f"{role}-*/{_FINISHED}"):
        if marker.parent != kept:
            with suppress(BusyError), exclusive(root / f"{marker.parent.name}.lock", "using these"):
                shutil.rmtree(marker.parent)


def code_hash(stage: str) -> str:
    """Hash of the code that decides what a stage computes: that which dvc.yaml lists for it.

    What is not listed (messages, the schema of the parameters, how files are written) changes no number, so a run that
    was killed goes on after such a change.
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
