"""Not a stage: writes the weights of another program's checkpoint under the names of a network, for params.yaml.

python -m stages.convert IN OUT.safetensors --to NETWORK
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

import models
from pipeline.errors import CheckpointError
from pipeline.portable.files import atomic_file
from pipeline.portable.text import first_line
from pipeline.training.pretrained import by_order, find_tensors, matched, read_checkpoint
from pipeline.training.weights import load_state
from stages.common import run_program


def convert(source: Path, target: Path, name: str, classes: int | None, entry: str | None, run_code: bool) -> None:
    if target.suffix != ".safetensors" or not target.parent.is_dir():
        raise CheckpointError(f"{target} is no .safetensors file in a folder that exists; name another")
    try:
        tensors = find_tensors(_read_with_code(source), source, entry) if run_code else read_checkpoint(source, entry)
        network = models.build(name, classes or _classes_in(tensors, name, source))
        renamed, note = matched(network, tensors, source), ""
        if set(renamed) != set(network.state_dict()) and (ordered := by_order(network, tensors)) is not None:
            renamed, note = ordered, "; its names differ, so the tensors were taken by their order and shapes"
        load_state(network, renamed, source)
    except CheckpointError as error:
        # the advice in some errors is for params.yaml
        fault, _, advice = str(error).partition("; ")
        for key, option in (
            ("params.yaml", "correct --to or --classes"),
            ("checkpoint_entry", "name one with --entry"),
        ):
            advice = option if key in advice else advice
        raise CheckpointError(f"{fault}; {advice}") from None
    with atomic_file(target) as temporary:
        temporary.write_bytes(save({key: value.contiguous() for key, value in network.state_dict().items()}))
    print(f"{target} holds the weights of {name}{note}")


def _classes_in(tensors: Mapping[str, Tensor], name: str, source: Path) -> int:
    """The number of classes of the weights, from the tensor that grows with it in the network."""
    two, three = models.build(name, 2).state_dict(), models.build(name, 3)
    key = next(key for key, value in three.state_dict().items() if value.shape != two[key].shape)
    named = matched(three, tensors, source)
    last = next((value for value in reversed(tensors.values()) if value.ndim), torch.zeros(1))
    return len(named.get(key, last))


def _read_with_code(path: Path) -> Any:
    """Whatever the file holds; code in it is run."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; correct the path")
    try:
        return torch.jit.load(path, map_location="cpu")
    except RuntimeError:  # no TorchScript
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path} needs the program that wrote it ({error}); run this where Python can import that"
        ) from None
    except Exception as error:  # torch and pickled code raise many kinds of errors
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); name another file") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="the checkpoint")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--to", required=True, metavar="NETWORK", help="as for teacher.network in params.yaml")
    parser.add_argument("--classes", type=_count, help="of the checkpoint; default: as many as its weights have")
    parser.add_argument("--entry", help="key of the state dict in the file; default: the usual ones")
    parser.add_argument(
        "--run-code", action="store_true", help="read a file that holds code by running it; only files you trust"
    )
    options = parser.parse_args()
    run_program(
        lambda: convert(options.source, options.target, options.to, options.classes, options.entry, options.run_code),
        models.UnknownNetworkError,
    )
