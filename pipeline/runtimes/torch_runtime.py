"""PyTorch, for a saved torch.export program."""

import re
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.portable.accuracy import Outputs
from pipeline.portable.text import first_line
from pipeline.runtimes import RuntimeUnavailableError

_COMPUTE = re.compile(r"^aten\.\w*(conv|linear|addmm|mm\b|matmul|attention)")


class TorchRuntime:
    """Runs a .pt2 file eagerly in inference mode.

    A .pt2 file can run any code, so load only files whose hash is in a manifest of your own export. In torch 2.14,
    ``torch.export.load`` has no ``weights_only``. The archive can mark weights as pickled, and they are unpickled
    without restriction; so are opaque constants, and sample inputs that the restricted reader refuses. Shape
    expressions are evaluated by ``sympy.sympify``, and operators are resolved by attribute name below ``torch``. No
    check of the archive can make a file from others safe.

    On an accelerator TF32 is off for the whole process, so fp32 means fp32.
    """

    name: ClassVar[str] = "torch"

    @staticmethod
    def unavailable() -> str | None:
        return runtimes.import_problem("torch", "pip install torch")

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        runtimes.check_request(path, precision, (".pt2",), self.unavailable())
        import torch
        from torch.export.passes import move_to_device_pass

        self._torch = torch
        self._batch = batch
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailableError("torch sees no CUDA device here; use device cpu or install the CUDA build.")
        if threads:
            torch.set_num_threads(threads)
        # A truncated file has no zip directory, and torch would log a traceback before its error.
        if not zipfile.is_zipfile(path):
            raise runtimes.unreadable(path, self.name, "not a complete .pt2 archive")
        try:
            program = torch.export.load(path)
        except Exception as error:  # the parsers of a damaged archive raise errors of many types
            raise runtimes.unreadable(path, self.name, first_line(error)) from error
        if self._device.type != "cpu":
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            program = move_to_device_pass(program, str(self._device))
        self._program = program
        self._module = program.module()
        self._example_shape: tuple[int, ...] | None = None

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        runtimes.check_batch(inputs, self._batch)
        self._example_shape = inputs.shape
        with self._torch.inference_mode():
            tensor = self._torch.from_numpy(inputs if inputs.flags.writeable else inputs.copy())
            outputs = self._module(tensor.to(self._device))
            parts = (outputs,) if isinstance(outputs, self._torch.Tensor) else outputs
            logits, *energy = (part.float().cpu().numpy() for part in parts)
        return Outputs(logits, energy[0] if energy else None)

    def executed(self) -> runtimes.Executed:
        """Report the operators that torch dispatches in one forward pass, and the type of their first tensor."""
        return self._observed

    @cached_property
    def _observed(self) -> runtimes.Executed:
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
            self.run(np.zeros(self.input_shape(), dtype=np.float32))
        kind = self._device.type
        return runtimes.Executed(
            precision=runtimes.summarise(runtimes.precision_of(dtype) for _, dtype in layers),
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

    def input_shape(self) -> tuple[int, ...]:
        if self._example_shape is not None:
            return self._example_shape
        names = self._program.graph_signature.user_inputs
        node = next(node for node in self._program.graph.nodes if node.name == names[0])
        return runtimes.example_shape(node.meta["val"].shape, self._batch)
