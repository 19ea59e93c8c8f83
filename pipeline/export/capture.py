"""From a network to a torch.export program, which all files are written from."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import Dim, ExportedProgram

from pipeline.errors import ExportError, brief
from pipeline.export.quiet import quiet

_CHUNK = 32  # images per forward pass: bounds memory at large image sizes


def deployable(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, float32, on the CPU, without gradients; the network itself is left as it is."""
    twin = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # the same numbers, but torch.onnx takes twice as long for in-place activations
    return twin.to(memory_format=torch.contiguous_format)


def reference_logits(network: nn.Module, images: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Float32 logits [N, K] of a network from :func:`deployable` on images [N, 3, S, S].

    Raises:
        ExportError: the network refuses the images, or its output is not finite logits [N, K].
    """
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), _CHUNK):
                parts.append(network(torch.tensor(images[start : start + _CHUNK])))  # noqa: PERF401
    except Exception as error:  # a network may raise anything
        side = images.shape[-1]
        raise ExportError(
            f"the {name} cannot run images of {side} x {side} ({first_line(error)}); set data.image_size to what "
            "its network takes, or choose another network"
        ) from error
    if not all(isinstance(part, torch.Tensor) and part.ndim == 2 for part in parts):
        raise ExportError(f"the {name} does not return logits [N, K] alone; choose a classifier")
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise ExportError(f"the {name} gives logits that are not finite; train it again with a lower learning rate")
    return logits


def capture(network: nn.Module, image_size: int, name: str) -> ExportedProgram:
    """Program of a network from :func:`deployable`: float32 [N, 3, S, S] to [N, K], any N >= 1.

    Raises:
        ExportError: torch.export cannot trace the network, or the network fixes the batch size.
    """
    # Two images, because torch.export takes a size of one for a constant.
    example = torch.zeros(2, 3, image_size, image_size)
    try:
        with quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch.export raises errors of all its parts
        raise ExportError(
            f"torch.export cannot trace the {name} with a free batch size ({first_line(error)}); choose a network "
            "without control flow that depends on the images or on their number"
        ) from error
    _drop_stack_traces(program)
    return program


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, shortened to fit a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if any(sign.isalnum() for sign in line)]
    return brief(lines[0] if lines else type(error).__name__).rstrip(" .:")


def _drop_stack_traces(program: ExportedProgram) -> None:
    # They hold paths of this machine and would be written into every file.
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
