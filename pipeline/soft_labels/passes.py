"""Passes of frozen networks by ONNX Runtime, where it is measured to be faster at them than torch."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compute.device import full_fp32
from pipeline.compute.tracing import in_float32, quiet
from pipeline.errors import EnergyKDError
from pipeline.portable.files import atomic_file
from pipeline.portable.text import first_line
from pipeline.training.session import Session

Network = Callable[[Tensor], Tensor]  # images float32 [B, C, H, W] -> logits [B, K]

_LONG = 60.0  # seconds that torch must need for all passes before ONNX Runtime is tried: a conversion takes about ten
_GAIN = 0.9  # ONNX Runtime is chosen at this share of torch's time or less
_ROUNDS = 5
_MAX_ERROR = 1e-4  # largest difference to torch's logits, as a share of the largest of them


class ConversionError(EnergyKDError):
    """A network cannot be converted, or the converted one answers otherwise."""


class ConvertedNetwork:
    """What ONNX Runtime computes of a network, float32, on the CPU; batches of other sizes than the first by torch.

    Args:
        network: in eval mode.
        images: float32 [B, C, H, W], a batch such as the network will get.

    Raises:
        ConversionError: torch.onnx or ONNX Runtime refuse the network, or its logits for the images are others.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self._network, self._shape = network, images.shape
        try:
            self._session = _onnxruntime_session(network, images)
            expected, found = network(images).float(), self(images)
        except Exception as error:  # torch.onnx and ONNX Runtime raise errors of many types
            raise ConversionError(first_line(error)) from error
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= _MAX_ERROR:
            raise ConversionError(f"its logits differ from those of torch by {difference:.1e} of the largest")

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 [B, K]."""
        if images.shape != self._shape:
            logits: Tensor = self._network(images)
            return logits
        [array] = self._session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(array)


def fastest(
    networks: Sequence[nn.Module], images: Tensor, passes: int, folder: Path, session: Session
) -> Sequence[Network]:
    """The networks as they are computed fastest here: by torch, or on a CPU by ONNX Runtime; the session is told.

    The first process chooses and writes the choice into ``folder``, so that all processes, and a run that goes on after
    a kill, compute the same bits.

    Args:
        networks: in eval mode.
        images: float32 [B, C, H, W], a batch such as they will get.
        passes: number of such batches to come.

    Raises:
        ConversionError: ONNX Runtime was chosen, but another process cannot use it.
    """
    if session.device.type != "cpu":
        return networks
    choice, converted = folder / "runtime", list[ConvertedNetwork]()
    with session.world.barrier(), torch.inference_mode(), full_fp32():
        if session.world.is_main and not choice.exists():
            converted = _converted_if_faster(networks, images, passes / session.world.size, session)
            with atomic_file(choice) as temporary:
                temporary.write_text("onnxruntime" if converted else "torch", encoding="utf-8")
    if choice.read_text(encoding="utf-8") == "torch":
        return networks
    with torch.inference_mode(), full_fp32():
        return converted or [ConvertedNetwork(network, images) for network in networks]


def _converted_if_faster(
    networks: Sequence[nn.Module], images: Tensor, passes: float, session: Session
) -> list[ConvertedNetwork]:
    """The networks by ONNX Runtime; none if torch is as fast, or done before that could be known."""
    _seconds(networks, images)  # choice of kernels
    if passes * _seconds(networks, images) < _LONG:
        return []
    try:
        converted = [ConvertedNetwork(network, images) for network in networks]
    except ConversionError as error:
        session.tell(f"teacher in torch, because ONNX Runtime cannot take its place ({error})")
        return []
    rounds = [(_seconds(networks, images), _seconds(converted, images)) for _ in range(_ROUNDS)]
    plain, other = map(median, zip(*rounds, strict=True))
    pays = other <= _GAIN * plain
    times = f"{len(images)} images take {plain:.3g} s in torch and {other:.3g} s in ONNX Runtime"
    session.tell(f"teacher in {'ONNX Runtime' if pays else 'torch'}; {times}")
    return converted if pays else []


def _seconds(networks: Sequence[Network], images: Tensor) -> float:
    started = time.perf_counter()
    for network in networks:
        network(images)
    return time.perf_counter() - started


def _onnxruntime_session(network: nn.Module, images: Tensor) -> Any:
    """An ``onnxruntime.InferenceSession`` with as many threads as torch has."""
    import onnxruntime  # noqa: PLC0415  only long runs need it

    with quiet(), torch.inference_mode(False):
        batch = images.detach().clone(memory_format=torch.contiguous_format)
        made = torch.onnx.export(in_float32(network), (batch,), dynamo=True, input_names=["images"], verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch draws the views on the same cores
    options.log_severity_level = 3
    graph = made.model_proto.SerializeToString()  # type: ignore[union-attr]
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
