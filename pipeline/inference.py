"""A frozen network over a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch, Images
from pipeline.distributed import ALONE, World

_PIXELS_AT_ONCE = 2**23  # bounds the memory of activations at large image sizes


def inference_batch(images: Images) -> int:
    """How many images go through a network at once when nothing is trained."""
    return max(1, min(256, _PIXELS_AT_ONCE // images.size**2))


def logits_in_batches(
    network: nn.Module, images: Images, rows: Sequence[range] | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Each un-augmented batch in order with its float32 logits [B, K]; the network is put into eval mode.

    Always float32, whatever the training precision: energies and reported accuracies must not depend on it.

    Args:
        rows: as for :meth:`pipeline.data.loader.Images.batches`.
    """
    network.eval()
    for batch in images.batches(inference_batch(images), rows):
        with torch.inference_mode():  # not around the yield: it would hold in the caller's code as well
            logits = network(batch.images).float()
        yield batch, logits


def all_logits(network: nn.Module, images: Images) -> Tensor:
    """Logits of a whole split, in order: float32 [N, K] on the CPU."""
    return torch.cat([logits.cpu() for _, logits in logits_in_batches(network, images)])


def top1(network: nn.Module, images: Images, world: World = ALONE) -> float:
    """Share of images whose largest logit is the label; each process looks at its part of them."""
    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    for batch, logits in logits_in_batches(network, images, [range(len(images))[world.share(len(images))]]):
        hits += (logits.argmax(dim=1) == batch.labels).sum()
    return int(world.total(hits)) / len(images)
