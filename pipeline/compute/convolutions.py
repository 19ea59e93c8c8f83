"""Convolutions of training steps that torch computes wrongly or slowly on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Pair = tuple[int, int]


@contextmanager
def mended_convolutions(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block, the network's convolutions over tiny maps are computed otherwise; no effect on a GPU.

    - Over maps one pixel wide or high in fp32: in bf16, torch (2.14, oneDNN) does not write the gradient of weights
      that only ever meet padding; it stays uninitialised memory, which may be nan; seen with kernels of 3 and 5.
    - Depthwise ones whose kernel is larger than the map in fp32, with :class:`DepthwiseConvolution`: there torch (2.14,
      oneDNN) takes many times as long for the gradient of the weights as it does over larger maps, and small images in
      EfficientNet and MobileNet spend much of a step on it (``python -m bench.convolutions``).
    """
    found = [part for part in network.modules() if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1)]
    chosen = found if device.type == "cpu" else []
    for convolution in chosen:
        convolution.forward = partial(_convolved, convolution)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution in chosen:
            del convolution.forward


def _convolved(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    plain, slow = type(convolution).forward, _has_slow_gradient(convolution, images)
    if not slow and min(images.shape[-2:]) > 1:
        return plain(convolution, images)
    with torch.autocast(images.device.type, enabled=False):
        if not slow:
            return plain(convolution, images.float())
        found: Tensor = DepthwiseConvolution.apply(
            images.float(), convolution.weight, convolution.bias, convolution.stride, convolution.padding
        )
        return found


def _has_slow_gradient(convolution: nn.Conv2d, images: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and convolution.groups == convolution.in_channels == convolution.out_channels
        and any(kernel > pixels for kernel, pixels in zip(convolution.kernel_size, images.shape[-2:], strict=True))
        # not one that pads in its own way
        and type(convolution).forward is nn.Conv2d.forward
        and (convolution.padding_mode, convolution.dilation) == ("zeros", (1, 1))
        and not isinstance(convolution.padding, str)
    )


class DepthwiseConvolution(torch.autograd.Function):
    """``F.conv2d(images, weight, bias, stride, padding, groups=C)`` with a gradient of the weights that is fast where
    the kernel is larger than the map: a sum of products for each of its places."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, padding: _Pair) -> Tensor:
        """Images [B, C, H, W] and weight [C, 1, kH, kW] of one floating type; bias [C] or None."""
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return F.conv2d(images, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images, of_weight, of_bias, *_ = ctx.needs_input_grad
        found = [None, None, None]
        if of_images or of_bias:
            found = torch.ops.aten.convolution_backward(
                *(gradient, images, weight, [len(weight)] if ctx.biased else None, ctx.stride, ctx.padding, [1, 1]),
                *(False, [0, 0], len(weight), [of_images, False, of_bias]),
            )
        weights = _weight_gradient(images, weight.shape, gradient, ctx.stride, ctx.padding) if of_weight else None
        return found[0], weights, found[2], None, None


def _weight_gradient(images: Tensor, shape: torch.Size, gradient: Tensor, stride: _Pair, padding: _Pair) -> Tensor:
    """[C, 1, kH, kW] from images [B, C, H, W] and the gradient of the outputs [B, C, H', W']."""
    images, gradient = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)  # channels last, as they lie in memory
    rows, columns = (
        [_met(place, images.shape[axis], gradient.shape[axis], stride[axis - 1], padding[axis - 1]) for place in places]
        for axis, places in ((1, range(shape[2])), (2, range(shape[3])))
    )
    found = images.new_zeros(shape[2], shape[3], shape[0])
    for (i, (into_y, out_y)), (j, (into_x, out_x)) in product(enumerate(rows), enumerate(columns)):
        # places of the kernel that only ever meet padding have empty slices
        found[i, j] = (images[:, into_y, into_x] * gradient[:, out_y, out_x]).sum(dim=(0, 1, 2))
    return found.permute(2, 0, 1).unsqueeze(1).contiguous()


def _met(place: int, size: int, outputs: int, stride: int, padding: int) -> tuple[slice, slice]:
    """The pixels that one place of the kernel meets along an axis, and the outputs that it contributes to."""
    offset = place - padding  # of the pixel that output 0 takes
    first = max(0, -(offset // stride))
    last = min(outputs - 1, (size - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    return slice(offset + first * stride, offset + last * stride + 1, stride), slice(first, last + 1)
