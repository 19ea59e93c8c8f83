"""A frozen network over a whole split."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch, Images
from pipeline.distributed import ALONE, World

_PIXELS_AT_ONCE = 2**23  # bounds the memory of activations at large image sizes


def logits_in_batches(network: nn.Module, images: Images, rows: slice = slice(None)) -> Iterator[tuple[Batch, Tensor]]:
    """Each un-augmented batch of ``rows`` in order with its float32 logits [B, K]; the network is put into eval mode.

    Always float32, whatever the training precision: energies and reported accuracies must not depend on it.
    """
    network.eval()
    with torch.inference_mode():
        for batch in images.batches(max(1, min(256, _PIXELS_AT_ONCE // images.size**2)), rows):
            yield batch, network(batch.images).float()


def all_logits(network: nn.Module, images: Images) -> Tensor:
    """Logits of a whole split, in order: float32 [N, K] on the CPU."""
    return torch.cat([logits.cpu() for _, logits in logits_in_batches(network, images)])


def top1(network: nn.Module, images: Images, world: World = ALONE) -> float:
    """Share of images whose largest logit is the label; each process looks at its part of them."""
    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    for batch, logits in logits_in_batches(network, images, world.share(len(images))):
        hits += (logits.argmax(dim=1) == batch.labels).sum()
    return int(world.total(hits)) / len(images)
