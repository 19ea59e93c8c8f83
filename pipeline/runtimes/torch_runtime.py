"""PyTorch: runs a saved torch.export program."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.runtimes.base import (
    Answers,
    Executed,
    check_batch,
    check_request,
    first_line,
    import_problem,
    precision_of,
    summarise,
    unreadable,
)
from pipeline.runtimes.errors import RuntimeUnavailableError

_COMPUTE = re.compile(r"^aten\.\w*(conv|linear|addmm|mm\b|matmul|attention)")


class TorchRuntime:
    """Runs a .pt2 file eagerly in inference mode.

    A .pt2 file is a program, so load only files whose hash is in a manifest of your own export. Read in torch 2.14:
    ``torch.export.load`` takes no ``weights_only``; plain weights are raw bytes described by JSON, but the archive
    itself may mark any of them as pickled and they are then unpickled without restriction, as are opaque constants,
    and sample inputs as soon as the restricted reader refuses them. Shape expressions go through ``sympy.sympify``,
    which evaluates them, and operators are resolved by attribute name below ``torch``. No check of the archive here
    could make a foreign file safe.

    On an accelerator TF32 is switched off for the process, so that fp32 means fp32.
    """

    name: ClassVar[str] = "torch"

    @staticmethod
    def unavailable() -> str | None:
        return import_problem("torch", "pip install torch")

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        check_request(path, precision, (".pt2",))
        if reason := self.unavailable():
            raise RuntimeUnavailableError(reason)
        import torch
        from torch.export.passes import move_to_device_pass

        self._torch = torch
        self._batch = batch
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailableError("torch sees no CUDA device here; use device cpu or install the CUDA build.")
        if threads:
            torch.set_num_threads(threads)
        # A file cut short has no directory at its end; torch would log a traceback before it raises.
        if not zipfile.is_zipfile(path):
            raise unreadable(path, self.name, "not a complete .pt2 archive")
        try:
            program = torch.export.load(path)
        except Exception as error:  # the reader of a damaged archive raises whatever its parsers raise
            raise unreadable(path, self.name, first_line(error)) from error
        if self._device.type != "cpu":
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            program = move_to_device_pass(program, str(self._device))
        self._program = program
        self._module = program.module()
        self._executed: Executed | None = None
        self._example_shape: tuple[int, ...] | None = None

    def run(self, inputs: NDArray[np.float32]) -> Answers:
        check_batch(inputs, self._batch)
        self._example_shape = inputs.shape
        with self._torch.inference_mode():
            tensor = self._torch.from_numpy(inputs if inputs.flags.writeable else inputs.copy())
            outputs = self._module(tensor.to(self._device))
            parts = (outputs,) if isinstance(outputs, self._torch.Tensor) else outputs
            logits, *energy = (part.float().cpu().numpy() for part in parts)
        return Answers(logits, energy[0] if energy else None)

    def executed(self) -> Executed:
        """Reports the operators that torch dispatched in one forward pass, and the type of their first tensor."""
        if self._executed is None:
            self._executed = self._observe()
        return self._executed

    def _observe(self) -> Executed:
        from torch.utils._python_dispatch import TorchDispatchMode

        torch = self._torch
        layers: list[tuple[str, str]] = []

        class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if _COMPUTE.match(str(func)):
                    tensor = next(argument for argument in args if isinstance(argument, torch.Tensor))
                    layers.append((str(func), str(tensor.dtype).removeprefix("torch.")))
                return func(*args, **(kwargs or {}))

        with Recorder():  # type: ignore[no-untyped-call]
            self.run(np.zeros(self._shape(), dtype=np.float32))
        kind = self._device.type
        return Executed(
            precision=summarise(precision_of(dtype) for _, dtype in layers),
            provider=kind if kind == "cpu" else f"{kind}:{torch.cuda.get_device_name(self._device)}",
            version=torch.__version__,
            threads=torch.get_num_threads(),
            detail={
                "layers": len(layers),
                "operators": sorted({operator for operator, _ in layers}),
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "cuda": torch.version.cuda if kind == "cuda" else None,
            },
        )

    def _shape(self) -> tuple[int, ...]:
        """[B, 3, H, W] of the last inference, or of the program's example with its symbolic sizes as exported."""
        if self._example_shape is not None:
            return self._example_shape
        names = self._program.graph_signature.user_inputs
        node = next(node for node in self._program.graph.nodes if node.name == names[0])
        sizes = [int(size) if isinstance(size, int) else None for size in node.meta["val"].shape]
        return (self._batch or sizes[0] or 1, *(size or 32 for size in sizes[1:]))
