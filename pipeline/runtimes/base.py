"""What all runtimes have in common: one interface, and the honest account of what was executed."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.runtimes.errors import ModelFileError, PrecisionError

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
UNKNOWN = "unknown"
INPUT, LOGITS, ENERGY = "input", "logits", "energy"  # names of input and outputs in our files
# How the runtimes spell element types; Q/DQ graphs run on unsigned as well as on signed bytes.
_PRECISION_OF_TYPE = {
    "float": "fp32",
    "float32": "fp32",
    "f32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "f16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "uint8": "int8",
    "i8": "int8",
    "u8": "int8",
}


class Answers(NamedTuple):
    """What a network says of B images.

    Attributes:
        logits: float32 [B, K].
        energy: float32 [B], of these logits; None where the file has no such output.
    """

    logits: NDArray[np.float32]
    energy: NDArray[np.float32] | None


@dataclass(frozen=True)
class Executed:
    """What a runtime reports about the network that it runs.

    Attributes:
        precision: input type of the convolutions and matrix products, which is where the time goes: "fp32", "fp16",
            "bf16", "int8", "mixed:int8=20,fp32=1" with counts, or "unknown" where the runtime does not tell.
        provider: backend and device that ran them.
        version: of the runtime.
        threads: in use; 0 where the runtime chooses and does not tell.
        detail: evidence, ready for JSON: layer counts, resolved hints, fallbacks.
    """

    precision: str
    provider: str
    version: str
    threads: int
    detail: dict[str, Any]


class Runtime(Protocol):
    """One loaded model. Inputs are float32 [B, 3, H, W], normalised; outputs are float32 logits and their energy."""

    name: ClassVar[str]

    @staticmethod
    def unavailable() -> str | None:
        """None if the runtime can be used here, else the reason in one sentence."""
        ...

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        """Load a model file.

        Args:
            precision: what the file is meant to be executed in; one of PRECISIONS. ``executed`` tells what was.
            threads: of one inference on a CPU; 0 leaves the runtime's own choice.
            batch: fixed batch size to specialise for; None accepts any.
            device: "cpu", or an accelerator as the runtime names it ("cuda", "gpu").

        Raises:
            ModelFileError: the file is missing, damaged or not for this runtime.
            PrecisionError: unknown precision; or another is executed, where the runtime knows that once it has loaded.
            RuntimeUnavailableError: the runtime or the device is not here.
        """
        ...

    def run(self, inputs: NDArray[np.float32]) -> Answers:
        """The answers for inputs [B, 3, H, W], in host memory on both sides."""
        ...

    def executed(self) -> Executed:
        """What was executed, as the runtime itself reports. Never to be called inside a timed region."""
        ...


def import_problem(module: str, install: str) -> str | None:
    """None if the module can be imported, else one sentence that says how to install it."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return f"{module} is not installed; install it with `{install}`."
        return f"{module} cannot be imported ({first_line(error)}); reinstall it with `{install}`."
    except (ImportError, OSError, RuntimeError) as error:
        return f"{module} cannot be imported ({first_line(error)}); reinstall it with `{install}`."
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, shortened so that it fits a sentence."""
    return _shorten(_lines(error)[0])


def last_line(error: BaseException) -> str:
    """The last line of an error that says something; for libraries that put the place in their code first."""
    return _shorten(_lines(error)[-1])


def _lines(error: BaseException) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines() if any(c.isalnum() for c in line)]
    return lines or [type(error).__name__]


def _shorten(text: str) -> str:
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text[:200])
    return shown[:200].rstrip(" .:!")


def check_request(path: Path, precision: str, suffixes: tuple[str, ...]) -> Path:
    """The path as given, once it is known that the request makes sense.

    Raises:
        PrecisionError: unknown precision.
        ModelFileError: no such file, or not one of the suffixes.
    """
    if precision not in PRECISIONS:
        raise PrecisionError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}.")
    if path.suffix not in suffixes:
        raise ModelFileError(f"{path} is not a {' or '.join(suffixes)} file; give this runtime the file made for it.")
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist; run the export stage first.")
    return path


def unreadable(path: Path, runtime: str, reason: str) -> ModelFileError:
    """The error for a file that the runtime refused."""
    return ModelFileError(f"{path} cannot be loaded by {runtime} ({reason}); export it again.")


def check_ends(path: Path, runtime: str, inputs: int, outputs: int) -> None:
    """Refuse a file without an input or without an output, which some runtimes load.

    Raises:
        ModelFileError: it is one.
    """
    if not inputs or not outputs:
        raise unreadable(path, runtime, f"it has {inputs} inputs and {outputs} outputs")


def joined(parts: Iterable[Answers]) -> Answers:
    """The answers for several batches as those for one."""
    logits, energy = zip(*parts, strict=True)
    return Answers(np.concatenate(logits), None if energy[0] is None else np.concatenate(energy))


def run_padded(runtime: Runtime, images: NDArray[np.float32], batch: int | None) -> Answers:
    """The answers of a file whose batch size is fixed for that many images or fewer, which are filled up.

    Args:
        images: [B, 3, H, W], 1 <= B <= ``batch``.
        batch: of the file; None if it takes any number.
    """
    missing = 0 if batch is None else batch - len(images)
    if missing == 0:
        return runtime.run(images)
    logits, energy = runtime.run(np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]))
    return Answers(logits[: len(images)], None if energy is None else energy[: len(images)])


def output_names(names: Sequence[str]) -> list[str]:
    """Which outputs of a file to fetch, the logits first; the only or first one where none has that name."""
    logits = LOGITS if LOGITS in names else names[0]
    return [logits, ENERGY] if ENERGY in names else [logits]


def check_batch(inputs: NDArray[np.float32], batch: int | None) -> None:
    """Refuse inputs that a model specialised for another batch size would misread.

    Raises:
        ValueError: wrong number of images.
    """
    if batch is not None and len(inputs) != batch:
        raise ValueError(f"the model was loaded for batches of {batch} images, but got {len(inputs)}.")


def precision_of(type_name: str) -> str:
    """The precision that a runtime's name of an element type stands for; the name itself if it is none of ours."""
    return _PRECISION_OF_TYPE.get(type_name.lower(), type_name.lower())


def summarise(precisions: Iterable[str]) -> str:
    """One precision if all compute layers agree, else "mixed:" with counts, most frequent first."""
    counts = sorted(Counter(precisions).items(), key=lambda item: (-item[1], item[0]))
    if not counts:
        return UNKNOWN
    if len(counts) == 1:
        return counts[0][0]
    return "mixed:" + ",".join(f"{precision}={count}" for precision, count in counts)


def check_executed(claimed: str, executed: Executed) -> str | None:
    """None if the claimed precision was executed, else what was executed instead, in one sentence."""
    if executed.precision == claimed:
        return None
    if executed.precision == UNKNOWN:
        return f"{claimed} was asked for and {executed.provider} does not report what it executed."
    return f"{claimed} was asked for but {executed.provider} executed {executed.precision}."
