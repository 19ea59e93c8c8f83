"""Weights on disk: our own as safetensors with a card; other people's are read without running their code."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

import models
from models.channels import for_grey
from models.describe import count_macs, count_parameters
from pipeline.errors import CheckpointError, LineageError, ParamsError
from pipeline.portable.files import atomic_folder, sha256_file
from pipeline.portable.text import brief, first_line
from pipeline.store.documents import MAKERS, NetworkCard, Shape
from pipeline.store.paths import CARD
from pipeline.training.pretrained import CONVERT, by_order, matched, read_checkpoint
from pipeline.training.stages import classifier

WEIGHTS = "weights.safetensors"
Resample = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor] | None]


def build_network(
    name: str,
    num_classes: int,
    key: str,
    shape: Shape | None = None,
    *,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """A network of the registry, in channels_last; the other arguments as of :func:`models.build`.

    Args:
        key: the entry of params.yaml that holds ``name``, for the message.

    Raises:
        ParamsError: there is no such network, or it cannot be built like this.
    """
    try:
        network = models.build(name, num_classes, shape=shape, dropout=dropout, drop_path=drop_path)
    except (models.UnknownNetworkError, models.NetworkOptionError) as error:
        raise ParamsError(f"params.yaml: {key}: {error}") from None
    return network.to(memory_format=torch.channels_last)


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
    network = build_network(card.network, card.num_classes, f"{card.role}.network", card.image.shape)
    try:
        load_state(network, read_checkpoint(path), path)
    except CheckpointError as error:
        # the advice in the error is for given checkpoints; the crash checkpoint would restore the same damage
        raise CheckpointError(
            f"{str(error).partition('; ')[0]}; remove .checkpoints and run `dvc repro -f {MAKERS[card.role]}`"
        ) from None
    return network.eval()


def load_pretrained(
    network: nn.Module,
    path: Path,
    *,
    entry: str | None = None,
    new_classes: int | None = None,
    resample: Resample | None = None,
) -> None:
    """Load a checkpoint that another program has written into ``network``.

    Args:
        path, entry: as of :func:`pipeline.training.pretrained.read_checkpoint`.
        new_classes, resample: as of :func:`load_tensors`.

    Raises:
        CheckpointError: the file is missing, is unreadable, would run code, or belongs to another network.
    """
    tensors = matched(network, read_checkpoint(path, entry), path)
    load_tensors(network, tensors, path, new_classes=new_classes, resample=resample)


def load_tensors(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Path | str,
    *,
    new_classes: int | None = None,
    resample: Resample | None = None,
) -> None:
    """Load tensors by the names of ``network``.

    Args:
        source: of the tensors, for the message.
        new_classes: number of classes of a network that is to be trained further: a classifier that is missing, or
            differs from the network's in the number of classes alone, stays the network's own; weights for RGB images
            are summed for grey ones.
        resample: makes tensors of another image size fit, or returns None.

    Raises:
        CheckpointError: they are those of another network, or hold values that are not finite.
    """
    _check_plain(tensors, source)
    fresh = {} if new_classes is None else _fresh_classifier(network, tensors, new_classes)
    shapes = {name: value.shape for name, value in network.state_dict().items() if name not in fresh}
    if resample is not None and any(shapes[name] != tensors[name].shape for name in shapes.keys() & tensors.keys()):
        tensors = resample(tensors) or tensors
    if new_classes is not None:
        tensors = for_grey(tensors, network)
    load_state(network, {**tensors, **fresh}, source)


def _fresh_classifier(network: nn.Module, tensors: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The network's own tensors [num_classes, ...] that ``tensors`` lack, all of the classifier, or have for another
    number of classes."""
    own = {name: value for name, value in network.state_dict().items() if value.shape[:1] == (num_classes,)}
    ends = {id(value) for part in classifier(network) for value in part.parameters()}
    missing = {name for name, value in network.named_parameters() if id(value) in ends and name not in tensors}
    other = {
        name
        for name in own.keys() & tensors.keys()
        if tensors[name].shape[:1] != own[name].shape[:1] and tensors[name].shape[1:] == own[name].shape[1:]
    }
    return {name: own[name] for name in own.keys() & (missing | other)}


def load_state(network: nn.Module, state: Mapping[str, Any], path: Path | str) -> None:
    """Load a state dict whose names and shapes must all fit.

    Raises:
        CheckpointError: they do not; names the first difference of each kind. The network is left as it was.
    """
    own = network.state_dict()
    _check_plain(state, path)
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    kinds = [
        name for name in own if name in state and own[name].is_floating_point() and not state[name].is_floating_point()
    ]
    grey = {f"{name}.weight" for name, layer in network.named_modules() if getattr(layer, "in_channels", None) == 1}
    if any(name in grey and state[name].shape[1:2] == (3,) for name in shapes):
        raise CheckpointError(f"the weights of {path} take 3 channels, but the images have 1; set data.channels to 3")
    problems = []
    if missing:
        problems.append(f"lacks {len(missing)} tensors such as {missing[0]}")
    if unexpected:
        problems.append(f"has {len(unexpected)} others such as {brief(unexpected[0])}")
    if kinds:
        problems.append(f"has {kinds[0]} as {str(state[kinds[0]].dtype).removeprefix('torch.')} numbers, not floats")
    if shapes:
        name = shapes[0]
        problems.append(f"has {name} as {list(state[name].shape)} in place of {list(own[name].shape)}")
    if problems:
        remedy = "correct the network or the checkpoint in params.yaml"
        if by_order(network, state) is not None:
            remedy = f"its tensors fit in order and shape, so {CONVERT} can rename them"
        raise CheckpointError(
            f"{path} is not a checkpoint of this network with this number of classes: it {', '.join(problems)}; "
            f"{remedy}"
        )
    network.load_state_dict(state)


def _check_plain(state: Mapping[str, Any], path: Path | str) -> None:
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
