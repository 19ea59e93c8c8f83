"""Build a TensorRT engine from an ONNX file. It needs a GPU, but not with TensorRT for RTX, which plans ahead of time.

The graph defines the precision (fp16 types, or Q/DQ for int8), and the network is strongly typed, which TensorRT 11
requires.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pipeline import runtimes
from pipeline.portable.text import first_line
from pipeline.runtimes import ModelFileError
from pipeline.runtimes.tensorrt_layers import logged_layers

FLAGS = "strongly_typed,no_tf32,detailed"  # what decides an engine beside the file and the batch sizes
# Used if they exist: TensorRT 10 ignores EXPLICIT_BATCH, and TensorRT 11 has removed it.
_NETWORK_FLAGS = ("STRONGLY_TYPED", "EXPLICIT_BATCH")
_IMAGE_AXES = 4  # [B, C, H, W]


class EngineLog(Protocol):
    """What TensorRT has said to a logger of :func:`make_log`."""

    def last_error(self) -> str:
        """The first line of the last error."""
        ...

    def layers(self) -> list[dict[str, Any]]:
        """Those of the engines that were built, see :mod:`pipeline.runtimes.tensorrt_layers`."""
        ...


def build_engine(
    tensorrt: Any,
    path: Path,
    sizes: tuple[int, int, int],
    log: EngineLog,
    configure: Callable[[Any], None] = lambda config: None,
) -> bytes:
    """Build an engine and return it serialised.

    Args:
        tensorrt: the module.
        sizes: smallest, preferred and largest batch, used if the file leaves the batch size open.
        log: from :func:`make_log`; it has the layers of the engine then.
        configure: called with the builder's configuration, for what not every module has.

    Raises:
        ModelFileError: TensorRT cannot parse the file or build an engine from it; names the reason.
    """
    builder = tensorrt.Builder(log)
    flags = tensorrt.NetworkDefinitionCreationFlag.__members__
    network = builder.create_network(sum(1 << int(flags[flag]) for flag in _NETWORK_FLAGS if flag in flags))
    parser = tensorrt.OnnxParser(network, log)  # it owns the weights of the network
    if not parser.parse(path.read_bytes()):
        raise ModelFileError(f"{path} cannot be parsed by TensorRT ({_parse_error(parser, log)}).")
    # an empty file, and text without ONNX in it, are empty networks to the parser
    runtimes.check_signature(path, "TensorRT", network.num_inputs, network.num_outputs)
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    # TF32 is on by default and rounds the inputs of fp32 convolutions to 10 bits, so it is switched off.
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    configure(config)
    image = network.get_input(0)
    shape = tuple(image.shape)
    if len(shape) != _IMAGE_AXES:
        raise runtimes.unreadable(path, "TensorRT", f"its input has {len(shape)} axes, not {_IMAGE_AXES}")
    if min(shape[1:]) < 1:
        raise ModelFileError(f"{path} leaves the image size open, which TensorRT cannot build; export it again.")
    if shape[0] < 1:
        profile = builder.create_optimization_profile()
        smallest, usual, largest = ((size, *shape[1:]) for size in sizes)
        profile.set_shape(image.name, min=smallest, opt=usual, max=largest)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelFileError(f"TensorRT cannot build an engine from {path} ({log.last_error()}); choose another file.")
    return bytes(plan)


def _parse_error(parser: Any, log: EngineLog) -> str:
    if not parser.num_errors:
        return log.last_error()
    error = parser.get_error(0)
    reason, operator = first_line(Exception(error.desc())), error.node_operator()
    return f"{reason}; node {error.node_name() or 'without a name'}, operator {operator}" if operator else reason


def make_log(tensorrt: Any) -> EngineLog:
    """Create a logger; TensorRT's own prints to standard output."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: list[str] = []
            self._listed: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                self._errors.append(msg)
            elif "LayerType: " in msg:
                self._listed.append(msg)

        def last_error(self) -> str:
            return first_line(Exception(self._errors[-1])) if self._errors else "it gave no reason"

        def layers(self) -> list[dict[str, Any]]:
            return list(logged_layers(self._listed))

    return Log()
