"""Weights on disk: our own as safetensors with a card; other people's are read without running their code."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import models
from models.channels import with_channels
from models.describe import count_macs, count_parameters
from pipeline.config import DistillParams
from pipeline.errors import CheckpointError, LineageError, ParamsError
from pipeline.portable.files import atomic_folder, sha256_file
from pipeline.portable.text import brief, first_line
from pipeline.store.documents import MAKERS, NetworkCard, Shape
from pipeline.store.paths import CARD

WEIGHTS = "weights.safetensors"
_WRAPPERS = ("model", "state_dict")


def build_network(name: str, num_classes: int, key: str, *, channels: int = 3) -> nn.Module:
    """A network of the registry, in channels_last.

    Args:
        key: the entry of params.yaml that holds ``name``, for the message.
        channels: of the images, 1 or 3.

    Raises:
        ParamsError: there is no such network, or it takes no grey images.
    """
    try:
        network = with_channels(models.build(name, num_classes), channels)
    except ValueError as error:
        raise ParamsError(f"params.yaml: {key}: {error}") from None
    return network.to(memory_format=torch.channels_last)


def build_student(params: DistillParams, num_classes: int, channels: int) -> nn.Module:
    """The student before training, with ``initial_weights`` if they are given, else with random weights.

    Raises:
        ParamsError: there is no such network, or it takes no grey images.
        CheckpointError: the weights are missing, unreadable or of another network.
    """
    student = build_network(params.network, num_classes, "distill.network", channels=channels)
    if params.initial_weights is not None:
        load_pretrained(student, Path(params.initial_weights), new_classes=num_classes)
    return student


def initial_weights_lineage(params: DistillParams) -> dict[str, str]:
    """Lineage of the weights that the student starts from; empty if they are drawn at random."""
    return {} if params.initial_weights is None else {"initial_weights": sha256_file(Path(params.initial_weights))}


def check_runs(network: nn.Module, key: str, num_classes: int, shape: Shape) -> None:
    """Run the network once, to refuse one that cannot take the images before anything is trained.

    Args:
        key: the entry of params.yaml that named the network, for the message.
        shape: of an image.

    Raises:
        ParamsError: it fails on images of this shape, or does not return logits [B, num_classes].
    """
    was_training = network.training
    try:
        with torch.inference_mode():
            returned = list(network.eval()(torch.zeros(2, *shape)).shape)
    except Exception as error:  # networks raise whatever their layers raise
        raise ParamsError(
            f"params.yaml: {key} cannot take images of {shape[1]} x {shape[2]} pixels ({first_line(error)}); change "
            "it or data.image_size"
        ) from None
    network.train(was_training)
    if returned != [2, num_classes]:
        raise ParamsError(
            f"params.yaml: {key} returns {returned} for 2 images in place of logits [2, {num_classes}]; change it"
        )


def write_network(folder: Path, network: nn.Module, facts: Mapping[str, Any]) -> NetworkCard:
    """Write weights and card into ``folder`` (replaced as a whole) and return the card.

    Args:
        facts: fields of the card; parameters, multiply-accumulates and the hash are added here.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_folder(folder) as temporary:
        # not save_file, which raises no OSError on a full disk
        (temporary / WEIGHTS).write_bytes(save(state))
        card = NetworkCard(
            **facts,
            parameters=count_parameters(network),
            macs=count_macs(network, facts["image"].shape),
            weights_sha256=sha256_file(temporary / WEIGHTS),
        )
        return card.write(temporary / CARD)


def read_network(folder: Path, card: NetworkCard) -> nn.Module:
    """Read the network that ``card`` describes from its ``folder``, in eval mode on the CPU.

    Raises:
        LineageError: the weights are not the ones that the card describes.
        CheckpointError: the weights do not fit the card's network, or hold values that are not finite.
    """
    path = folder / WEIGHTS
    found = sha256_file(path) if path.exists() else "no file"
    if found != card.weights_sha256:
        raise LineageError(
            f"{path} has hash {found[:12]}, but its card was written for {card.weights_sha256[:12]}; run `dvc repro`"
        )
    network = build_network(card.network, card.num_classes, f"{card.role}.network", channels=card.image.channels)
    try:
        load_state(network, _read_state(path), path)
    except CheckpointError as error:
        # the advice in the error is for given checkpoints; the crash checkpoint would restore the same damage
        raise CheckpointError(
            f"{str(error).partition('; ')[0]}; remove .checkpoints and run `dvc repro -f {MAKERS[card.role]}`"
        ) from None
    return network.eval()


def load_pretrained(network: nn.Module, path: Path, *, new_classes: int | None = None) -> None:
    """Load a checkpoint that someone else trained into ``network``.

    Args:
        new_classes: number of classes, for a network that will be trained further: where a tensor of the checkpoint
            differs only in the number of classes, the network keeps its own.
        path: a .safetensors file, or a torch file with a state dict, bare or under ``model`` or ``state_dict``, read
            with ``weights_only=True``. A ``module.`` prefix, left by DataParallel, is taken off.

    Raises:
        CheckpointError: the file is missing, is unreadable, would run code, or belongs to another network.
    """
    state = _read_state(path)
    for wrapper in _WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            state = dict(inner)
            break
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict, bare or under {' or '.join(_WRAPPERS)}; save one of those")
    if new_classes is not None:
        tensors |= _class_tensors(network, tensors, new_classes)
    load_state(network, tensors, path)


def _class_tensors(network: nn.Module, tensors: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The network's tensors [num_classes, ...] whose namesakes in ``tensors`` differ only in the first size."""
    return {
        name: own
        for name, own in network.state_dict().items()
        if own.ndim > 0
        and own.shape[0] == num_classes
        and name in tensors
        and tensors[name].shape[:1] != own.shape[:1]
        and tensors[name].shape[1:] == own.shape[1:]
    }


def load_state(network: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Load a state dict whose names and shapes must all fit.

    Raises:
        CheckpointError: they do not; names the first difference of each kind. The network is left as it was.
    """
    own = network.state_dict()
    _check_plain(state, path)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    grey = {f"{name}.weight" for name, layer in network.named_modules() if getattr(layer, "in_channels", None) == 1}
    if any(name in grey and state[name].shape[1:2] == (3,) for name in shapes):
        raise CheckpointError(f"the weights of {path} take 3 channels, but the images have 1; set data.channels to 3")
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} tensors such as {missing[0]}")
    if unexpected:
        problems.append(f"has {len(unexpected)} others such as {brief(unexpected[0])}")
    if shapes:
        name = shapes[0]
        problems.append(f"has {name} as {list(state[name].shape)} in place of {list(own[name].shape)}")
    if problems:
        raise CheckpointError(
            f"{path} is not a checkpoint of this network with this number of classes: it {', '.join(problems)}; "
            "correct the network or the checkpoint in params.yaml"
        )
    network.load_state_dict(state)


def _check_plain(state: Mapping[str, Any], path: Path) -> None:
    """Refuse values that torch would fail at after loading other tensors, or would load as nonsense."""
    for name, value in state.items():
        # tested first, because other kinds of tensors raise errors in the tests below
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.is_quantized or value.is_complex():
            raise CheckpointError(f"{path} has {brief(name)} in a form that is not plain numbers; save them as floats")
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise CheckpointError(f"{path} has values of {brief(name)} that are not finite; use another checkpoint")


def state_bytes(network: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(value.nbytes for value in network.state_dict().values())


def _read_state(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that torch did not write; the error below reports them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist; correct the path") from None
    except Exception as error:  # torch and safetensors raise many kinds of errors on damaged files
        raise CheckpointError(
            f"checkpoint {path} is not a safetensors file or a plain state dict ({first_line(error)}); save it as one "
            "of those"
        ) from None
    if not isinstance(state, Mapping):
        raise CheckpointError(f"checkpoint {path} holds {type(state).__name__}, not a state dict; save the state dict")
    return dict(state)
