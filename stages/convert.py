"""Not a stage: writes the weights of another program's checkpoint under the names of a network, for params.yaml.

python -m stages.convert IN OUT.safetensors --to NETWORK
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

import models
from pipeline.errors import CheckpointError
from pipeline.portable.files import atomic_file
from pipeline.training.pretrained import by_order, find_tensors, matched, read_checkpoint
from pipeline.training.weights import load_state
from stages.common import run_program


def convert(source: Path, target: Path, name: str, classes: int | None, entry: str | None, run_code: bool) -> None:
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} does not end in .safetensors; name a file that does")
    tensors = find_tensors(_read_with_code(source), source, entry) if run_code else read_checkpoint(source, entry)
    if classes is None:
        classes = len(next((value for value in reversed(tensors.values()) if value.ndim), torch.zeros(1)))
    network = models.build(name, classes)
    renamed, note = matched(network, tensors, source), ""
    if set(renamed) != set(network.state_dict()) and (ordered := by_order(network, tensors)) is not None:
        renamed, note = ordered, "; its names differ, so the tensors were taken by their order and shapes"
    load_state(network, renamed, source)
    with atomic_file(target) as temporary:
        temporary.write_bytes(save({key: value.contiguous() for key, value in network.state_dict().items()}))
    print(f"{target} holds the weights of {name} with {classes} classes{note}")


def _read_with_code(path: Path) -> Any:
    """Whatever the file holds; code in it is run."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; correct the path")
    try:
        content = torch.jit.load(path, map_location="cpu")
    except RuntimeError:
        content = torch.load(path, map_location="cpu", weights_only=False)
    return content.state_dict() if isinstance(content, nn.Module) else content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN", help="the checkpoint")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--to", required=True, metavar="NETWORK", help="as for teacher.network in params.yaml")
    parser.add_argument("--classes", type=int, help="of the checkpoint; default: the length of its last tensor")
    parser.add_argument("--entry", help="key of the state dict in the file; default: the usual ones")
    parser.add_argument(
        "--run-code", action="store_true", help="read a file that holds code by running it; only files you trust"
    )
    options = parser.parse_args()
    run_program(
        lambda: convert(options.source, options.target, options.to, options.classes, options.entry, options.run_code),
        models.UnknownNetworkError,
    )
