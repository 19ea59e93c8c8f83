"""Keep the notes of the exporters out of the pipeline's output."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# They report progress, fallbacks that the checks of this package would find, and advice about options set here.
_CHATTY = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "onnxruntime", "root")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and log records below CRITICAL of the exporters; exceptions pass. Restores all on the way out.

    Results are judged by the checker, by :mod:`pipeline.export.structure` and by the parity gate, never by the log.
    """
    loggers = [logging.getLogger(None if name == "root" else name) for name in _CHATTY]
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
