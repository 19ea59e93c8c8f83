"""Logits and predictions of a network for a whole split."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline.compute.device import full_fp32
from pipeline.compute.distributed import ALONE, World
from pipeline.data.loader import Batch, Images
from pipeline.training.predictions import Predictions

_PIXELS_AT_ONCE = 2**23  # bounds the memory of activations at large image sizes


def inference_batch(images: Images) -> int:
    """Batch size of inference."""
    return max(1, min(256, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2])))


def logits_in_batches(
    network: nn.Module, images: Images, rows: Sequence[range] | None = None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each un-augmented batch in order with its float32 logits [B, K]; puts the network into eval mode.

    Always float32, whatever the training precision: energies and reported accuracies must not depend on it.

    Args:
        rows: as for :meth:`pipeline.data.loader.Images.batches`.
    """
    network.eval()
    for batch in images.batches(inference_batch(images), rows):
        with torch.inference_mode(), full_fp32():  # not around the yield, where they would affect the caller's code
            logits = network(batch.images).float()
        yield batch, logits


def all_logits(network: nn.Module, images: Images) -> Tensor:
    """Logits of a whole split, in order: float32 [N, K] on the CPU."""
    return torch.cat([logits.cpu() for _, logits in logits_in_batches(network, images)])


def sampled_top1(network: nn.Module, images: Images, most: int) -> float:
    """Top-1 on at most so many images, evenly spread over the split; puts the network into eval mode."""
    network.eval()
    count = min(most, len(images))
    index = torch.arange(count, device=images.device) * len(images) // count
    right = 0
    for part in torch.split(index, inference_batch(images)):
        with torch.inference_mode(), full_fp32():
            right += int((network(images.centre(part)).argmax(dim=1) == images.labels[part]).sum())
    return right / count


def predict(network: nn.Module, images: Images, world: World = ALONE) -> Predictions:
    """Predict the class of each image; each process computes its part, and all processes get all predictions."""
    part = range(len(images))[world.share(len(images))]
    predicted = [images.labels[:0]]  # for a process that has no image
    predicted += [logits.argmax(dim=1) for _, logits in logits_in_batches(network, images, [part])]
    return Predictions(world.gather(torch.cat(predicted)), images.labels)
