"""What a killed run has finished: crash checkpoints of training, and the folder that any long pass keeps its parts in.

They lie in a git-ignored folder that DVC does not know, under a key made of all that decides the result. A changed
parameter, data set or line of code is another key, so old weights never go on as new; the same key goes on where it
was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from pipeline.artifacts import atomic_file
from pipeline.distributed import ALONE, World
from pipeline.errors import TrainingError

_FILE = "epoch.safetensors"
_CODE = Path(__file__).parent.parent


class Checkpoint:
    """The last finished epoch of one run: weights, optimizer state and records, in one safetensors file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer, records: list[dict[str, Any]]) -> None:
        """Replace the stored epoch. Atomic: a kill leaves the one before."""
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items() if value is not None}
        # safetensors stores plain row-major memory; channels_last is put back by copying into the network
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with atomic_file(self.folder / _FILE) as temporary:
            # not save_file: on a full disk its error is not the system's
            temporary.write_bytes(save(plain, metadata={"records": json.dumps(records)}))

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
def open_checkpoint(root: Path, role: str, decides: Mapping[str, Any], world: World = ALONE) -> Iterator[Checkpoint]:
    """The checkpoint of the run that ``decides`` describes, locked; removed when the block ends well.

    Args:
        root: folder of all checkpoints.
        role: teacher or student.
        decides: parameters and hashes of inputs, JSON-like. The code of the repository is added here.

    Raises:
        TrainingError: another process is training the same run.
    """
    with crash_folder(root, role, decides, f"training this {role}", world) as folder:
        yield Checkpoint(folder)


@contextmanager
def crash_folder(root: Path, role: str, decides: Mapping[str, Any], work: str, world: World = ALONE) -> Iterator[Path]:
    """The folder for what the run that ``decides`` describes has finished, locked; removed when the block ends well.

    Args:
        root, decides: as for :func:`open_checkpoint`.
        role: what the folder's name begins with.
        work: what the run does, for the sentence that refuses a second one.
        world: the processes that share the folder; the first one holds the lock and removes the folder, so all must
            have met after the last use by another.

    Raises:
        TrainingError: another run does the same.
    """
    key = hashlib.sha256(json.dumps([decides, code_hash()], sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{role}-{key}"
    with ExitStack() as held:
        with world.together():
            if world.first:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(_locked(root / f"{role}-{key}.lock", work))
        yield folder
        if world.first:
            shutil.rmtree(folder)


@contextmanager
def _locked(lock: Path, work: str) -> Iterator[None]:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"another process is already {work} (it holds {lock}); wait for it or stop it"
            ) from None
        yield


def code_hash() -> str:
    """Hash of all code that trains: the packages models, pipeline and stages."""
    digest = hashlib.sha256()
    for package in ("models", "pipeline", "stages"):
        for path in sorted((_CODE / package).rglob("*.py")):
            digest.update(path.relative_to(_CODE).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
