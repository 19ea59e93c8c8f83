"""A network before its training: built, with the weights and the normalisation that it begins with."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from models import libraries
from pipeline.config import (
    PRETRAINED,
    TEACHER,
    FurtherTeacherParams,
    NetworkParams,
    NormalisedParams,
    TeacherParams,
)
from pipeline.data.normalisation import Normalisation
from pipeline.errors import CheckpointError, ParamsError, located
from pipeline.portable.files import sha256_file
from pipeline.store.documents import DataCard, Shape
from pipeline.training.session import Session
from pipeline.training.weights import build_network, load_pretrained, load_tensors


@dataclass(frozen=True)
class Initial:
    """A network before its training.

    Attributes:
        normalisation: that params.yaml gives, or that its weights were trained with; None: that of the training images.
        lineage: the hash of its initial weights; empty if they are random.
    """

    network: nn.Module
    normalisation: Normalisation | None
    lineage: dict[str, str]

    def normalised(self, data: DataCard, name: str, session: Session) -> Normalisation:
        """The normalisation to train in; the session is told that of given weights."""
        if self.normalisation is not None:
            session.tell(f"normalisation of {name}: mean {self.normalisation.mean}, std {self.normalisation.std}")
        return self.normalisation or Normalisation.of(data)


def initial_network(params: NetworkParams, block: str, num_classes: int, shape: Shape) -> Initial:
    """Build the network of a ``block`` of params.yaml with its initial weights.

    Weights of other classes keep a fresh classifier; positions of attention networks are resampled to the image size.

    Raises:
        ParamsError: there is no such network, it cannot be built like this, or its name has a tag that nothing loads.
        CheckpointError: the weights are missing, unreadable or of another network, or cannot be downloaded.
    """
    network = build_network(
        params.network,
        num_classes,
        f"{block}.network",
        shape,
        dropout=params.training.dropout,
        drop_path=params.training.drop_path,
    )
    given = given_normalisation(params)
    if params.initial_weights is None:
        if tag := libraries.tag(params.network):
            raise ParamsError(
                f"params.yaml: {block}.network {params.network} names the weights {tag}, but {block}.initial_weights "
                f"is null; set it to {PRETRAINED}, or take the tag off"
            )
        return Initial(network, given, {})
    resample = partial(libraries.resampled, params.network, num_classes=num_classes, image_size=shape[1:])
    with located(f"params.yaml: {block}.initial_weights: "):
        if params.initial_weights == PRETRAINED:
            try:
                state = libraries.pretrained(params.network)
            except libraries.NoWeightsError as error:
                raise CheckpointError(str(error)) from None
            load_tensors(network, state, params.network, new_classes=num_classes, resample=resample)
            sha256 = state_sha256(state)
        else:
            path = Path(params.initial_weights)
            load_pretrained(network, path, entry=params.checkpoint_entry, new_classes=num_classes, resample=resample)
            sha256 = sha256_file(path)
    return Initial(network, given or library_normalisation(params.network, shape[0]), {"initial_weights": sha256})


def given_teacher(
    params: TeacherParams | FurtherTeacherParams, num_classes: int, shape: Shape, block: str = TEACHER
) -> nn.Module:
    """The teacher with the weights of ``params.checkpoint``, which must fit; errors as of :func:`initial_network`."""
    network = build_network(params.network, num_classes, f"{block}.network", shape)
    resample = partial(libraries.resampled, params.network, num_classes=num_classes, image_size=shape[1:])
    with located(f"params.yaml: {block}.checkpoint: "):
        load_pretrained(network, Path(str(params.checkpoint)), entry=params.checkpoint_entry, resample=resample)
    return network


def given_normalisation(params: NormalisedParams) -> Normalisation | None:
    """The normalisation that params.yaml gives."""
    return None if params.mean is None or params.std is None else Normalisation(tuple(params.mean), tuple(params.std))


def library_normalisation(name: str, channels: int) -> Normalisation | None:
    """What the library's weights of a network were trained with; None for networks of our own."""
    statistics = libraries.input_statistics(name)
    return None if statistics is None else Normalisation(*statistics).of_channels(channels)


def state_sha256(state: libraries.State) -> str:
    """Hash of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes()
