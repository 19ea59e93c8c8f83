"""One interface for all runtimes: load a model file, run it, and report the executed precision.

This package also runs on devices, so it needs Python 3.10 and numpy only. A runtime is imported when it is used.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.portable.accuracy import Outputs
from pipeline.portable.text import first_line

_CLASSES = {
    "torch": ("pipeline.runtimes.torch_runtime", "TorchRuntime"),
    "onnxruntime": ("pipeline.runtimes.onnxruntime_runtime", "OnnxRuntime"),
    "openvino": ("pipeline.runtimes.openvino_runtime", "OpenVinoRuntime"),
    "tensorrt": ("pipeline.runtimes.tensorrt_runtime", "TensorRtRuntime"),
    "tensorrt_rtx": ("pipeline.runtimes.tensorrt_rtx_runtime", "TensorRtRtxRuntime"),
}
NAMES = tuple(_CLASSES)
_FORMAT_READ_BY = {
    **{"torch": "torch", "onnxruntime": "onnx", "openvino": "openvino"},
    **{"tensorrt": "onnx", "tensorrt_rtx": "onnx"},
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
UNKNOWN = "unknown"
INPUT, LOGITS, ENERGY = "input", "logits", "energy"  # names of the input and outputs in exported files
# Names of element types in the runtimes. Q/DQ graphs use unsigned and signed bytes.
_SPELLINGS = {
    "fp32": ("float", "float32", "f32"),
    "fp16": ("float16", "half", "f16"),
    "bf16": ("bfloat16", "bf16"),
    "int8": ("int8", "uint8", "i8", "u8"),
}
_PRECISION_OF_TYPE = {spelling: precision for precision, names in _SPELLINGS.items() for spelling in names}


class RuntimesError(Exception):
    """Base of the errors of this package."""


class RuntimeUnavailableError(RuntimesError):
    """The runtime is not installed, or the requested device is missing."""


class PrecisionError(RuntimesError):
    """The requested precision is unknown, or another precision is executed."""


class ModelFileError(RuntimesError):
    """The model file is missing, damaged, or does not fit the runtime."""


@dataclass(frozen=True)
class Executed:
    """A runtime's report on the loaded network.

    Attributes:
        precision: input type of the convolutions and matrix products, which take most of the time: "fp32", "fp16",
            "bf16", "int8", "mixed:int8=20,fp32=1" with counts, or "unknown" if the runtime does not report it.
        provider: backend and device that ran these layers.
        version: version of the runtime.
        threads: number of threads; 0 if the runtime does not report it.
        detail: evidence as JSON values: layer counts, resolved hints, fallbacks.
    """

    precision: str
    provider: str
    version: str
    threads: int
    detail: dict[str, Any]


class Runtime(Protocol):
    """One loaded model. Inputs are normalised float32 [B, 3, H, W]; outputs are float32 logits and their energies."""

    name: ClassVar[str]

    @staticmethod
    def unavailable() -> str | None:
        """Return None if the runtime can be used on this machine, else the reason in one sentence."""
        ...

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        """Load a model file.

        Args:
            precision: requested precision, one of PRECISIONS. ``executed`` reports the actual one.
            threads: CPU threads of one inference; 0 means the default of the runtime.
            batch: fixed batch size to specialise for; None accepts any.
            device: "cpu", or the runtime's name of an accelerator ("cuda", "gpu").

        Raises:
            ModelFileError: the file is missing, damaged or not for this runtime.
            PrecisionError: the precision is unknown, or the runtime knows after loading that it executes another.
            RuntimeUnavailableError: the runtime or the device is missing.
        """
        ...

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        """Run one inference. Inputs [B, 3, H, W] and outputs are in host memory."""
        ...

    def executed(self) -> Executed:
        """Report the executed precision and provider. This may be slow, so never call it while timing."""
        ...

    def input_shape(self) -> tuple[int, ...]:
        """Shape [B, 3, H, W] of the last inference, else one that the file takes."""
        ...


def format_read_by(name: str, precision: str) -> str:
    """Export format that a runtime in NAMES reads. TensorRT builds its engine from ONNX, for int8 from its own file."""
    return "tensorrt" if name.startswith("tensorrt") and precision == "int8" else _FORMAT_READ_BY[name]


def runtime_class(name: str) -> type[Runtime]:
    """Return the class of a runtime in NAMES; RuntimeUnavailableError for any other name."""
    if name not in _CLASSES:
        raise RuntimeUnavailableError(f"runtime {name!r} is unknown; use one of {', '.join(NAMES)}.")
    module, class_name = _CLASSES[name]
    runtime: type[Runtime] = getattr(importlib.import_module(module), class_name)
    return runtime


def load(
    name: str, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
) -> Runtime:
    """Load a model file; arguments and errors as in ``Runtime``."""
    return runtime_class(name)(path, precision=precision, threads=threads, batch=batch, device=device)


def import_problem(module: str, install: str) -> str | None:
    """Return None if the module can be imported, else one sentence with the command that installs it."""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return f"{module} is not installed; install it with `{install}`."
        return f"{module} cannot be imported ({first_line(error)}); reinstall it with `{install}`."
    return None


def check_request(path: Path, precision: str, suffixes: tuple[str, ...], problem: str | None) -> None:
    """Raise an error for an unknown precision, a wrong suffix, a missing file, or a runtime with a problem."""
    if precision not in PRECISIONS:
        raise PrecisionError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
    if path.suffix not in suffixes:
        raise ModelFileError(f"{path} is not a {' or '.join(suffixes)} file; give this runtime the file made for it.")
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist; run the export stage first.")
    if problem is not None:
        raise RuntimeUnavailableError(problem)


def unreadable(path: Path, runtime: str, reason: str) -> ModelFileError:
    """Create the error for a file that the runtime cannot load."""
    return ModelFileError(f"{path} cannot be loaded by {runtime} ({reason}); export it again.")


def check_signature(path: Path, runtime: str, inputs: int, outputs: int) -> None:
    """Raise ModelFileError for a file without an input or output, because some runtimes load such a file."""
    if not inputs or not outputs:
        raise unreadable(path, runtime, f"it has {inputs} inputs and {outputs} outputs")


def joined(parts: Iterable[Outputs]) -> Outputs:
    """Concatenate the outputs of several batches."""
    logits, energy = zip(*parts, strict=True)
    return Outputs(np.concatenate(logits), None if energy[0] is None else np.concatenate(energy))


def run_padded(runtime: Runtime, images: NDArray[np.float32], batch: int | None) -> Outputs:
    """Run a file with a fixed batch size on the same or a smaller number of images, padding with the last image.

    Args:
        images: [B, 3, H, W], 1 <= B <= ``batch``.
        batch: batch size of the file; None if it accepts any.
    """
    missing = 0 if batch is None else batch - len(images)
    if missing == 0:
        return runtime.run(images)
    logits, energy = runtime.run(np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]))
    return Outputs(logits[: len(images)], None if energy is None else energy[: len(images)])


def example_shape(sizes: Sequence[Any], batch: int | None) -> tuple[int, ...]:
    """Shape of an input for a file with these sizes, with 1 image and 32 pixels where a size is no number."""
    images, *others = (size if isinstance(size, int) else None for size in sizes)
    return (batch or images or 1, *(size or 32 for size in others))


def output_names(names: Sequence[str]) -> list[str]:
    """Choose the outputs to read, logits first. Without an output named "logits" the first output is used."""
    logits = LOGITS if LOGITS in names else names[0]
    return [logits, ENERGY] if ENERGY in names else [logits]


def check_batch(inputs: NDArray[np.float32], batch: int | None) -> None:
    """Raise ValueError for inputs whose batch size is not the fixed batch size of the model."""
    if batch is not None and len(inputs) != batch:
        raise ValueError(f"the model was loaded for batches of {batch} images, but got {len(inputs)}.")


def precision_of(type_name: str) -> str:
    """Translate a runtime's name of an element type to one of PRECISIONS; an unknown name stays as it is."""
    return _PRECISION_OF_TYPE.get(type_name.lower(), type_name.lower())


def summarise(precisions: Iterable[str]) -> str:
    """Return the precision if all compute layers agree, else "mixed:" with counts, most frequent first."""
    counts = sorted(Counter(precisions).items(), key=lambda item: (-item[1], item[0]))
    if not counts:
        return UNKNOWN
    if len(counts) == 1:
        return counts[0][0]
    return "mixed:" + ",".join(f"{precision}={count}" for precision, count in counts)


def check_executed(claimed: str, executed: Executed) -> str | None:
    """Return None if the claimed precision was executed, else the difference in one sentence."""
    if executed.precision == claimed:
        return None
    if executed.precision == UNKNOWN:
        return f"{claimed} was asked for and {executed.provider} does not report what it executed."
    return f"{claimed} was asked for but {executed.provider} executed {executed.precision}."
