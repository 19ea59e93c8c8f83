"""Trace a network to a torch.export program, the common source of all exported files."""

import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils.model import reparameterize_model
from torch import nn
from torch.export import Dim, ExportedProgram

from pipeline.compute.tracing import in_float32, quiet
from pipeline.errors import ExportError
from pipeline.portable.text import first_line
from pipeline.store.documents import Shape

_IMAGES_AT_ONCE = 32  # bounds memory at large image sizes


def deployable(network: nn.Module) -> nn.Module:
    """Return the copy of :func:`in_float32` as it is deployed: branches that only training needs are merged (RepVGG,
    MobileOne, FastViT)."""
    twin: nn.Module = reparameterize_model(in_float32(network))
    return twin


def reference_logits(network: nn.Module, images: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Compute float32 logits [N, K] of a network from :func:`in_float32` on images [N, C, H, W].

    Raises:
        ExportError: the network fails on the images, or does not return finite logits [N, K].
    """
    try:
        with torch.inference_mode():
            starts = range(0, len(images), _IMAGES_AT_ONCE)
            parts = [network(torch.tensor(images[start : start + _IMAGES_AT_ONCE])) for start in starts]
    except Exception as error:  # a network may raise anything
        height, width = images.shape[2:]
        raise ExportError(
            f"the {name} cannot run images of {height} x {width} ({first_line(error)}); set data.image_size to the "
            "size that the network expects, or choose another network"
        ) from error
    if not all(isinstance(part, torch.Tensor) and part.ndim == 2 for part in parts):
        raise ExportError(f"the {name} does not return logits [N, K] alone; choose a classifier")
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise ExportError(f"the {name} gives logits that are not finite; train it again with a lower learning rate")
    return logits


def capture(network: nn.Module, shape: Shape, name: str) -> ExportedProgram:
    """Trace a network from :func:`deployable` for any batch size N >= 1: float32 [N, C, H, W] -> [N, K].

    Args:
        shape: of an image.

    Raises:
        ExportError: torch.export cannot trace the network, or the network fixes the batch size.
    """
    # a batch of two, because torch.export treats a batch of one as a constant
    example = torch.zeros(2, *shape)
    try:
        with quiet():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # torch.export raises many types of errors
        raise ExportError(
            f"torch.export cannot trace the {name} with a dynamic batch size ({first_line(error)}); choose a network "
            "without control flow that depends on the images or on their number"
        ) from error
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program
