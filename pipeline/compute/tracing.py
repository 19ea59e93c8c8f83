"""What comes before a network is traced for another program: a plain copy of it, and silence."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# loggers of progress, advice and fallbacks; None is the root logger
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "onnxruntime", None)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporters' warnings and their log records below CRITICAL inside the block; exceptions pass.

    What was made is judged by checks of it and of its answers; the log is not needed.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def in_float32(network: nn.Module) -> nn.Module:
    """Return a float32 copy on the CPU, in eval mode and without gradients; the original network is not changed."""
    twin = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    for module in twin.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]  # in-place activations double the time of torch.onnx
    return twin.to(memory_format=torch.contiguous_format)
