"""Stages of a network, shallow to deep: the first ones can keep their weights, or learn more slowly."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

from torch import nn

_NEARLY_ALL = 0.9  # of the parameters; the last stage of a ResNet holds up to three quarters


def stages(network: nn.Module, *, coarse: bool = True) -> list[list[str]]:
    """Names of the parameters of each stage, shallow to deep; the last stage holds the classifier.

    Networks of timm declare their stages. In others, the children in the order of their registration are the stages.
    One that holds nearly all parameters before the last child, as torchvision's ``features`` and ``encoder`` do, counts
    by its own children; a child with vectors only, such as a batch norm, belongs to the one before it.

    Args:
        coarse: False for single blocks in place of stages, where the network declares them.
    """
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters  # noqa: PLC0415  takes a second, and only its networks need it

        grouped = group_parameters(network, cast(Any, network).group_matcher(coarse=coarse))
        return [grouped[number] for number in sorted(grouped)]
    found: list[list[str]] = []
    for prefix, child in _children(network):
        parameters = dict(child.named_parameters(prefix))
        if found and all(value.ndim <= 1 for value in parameters.values()):
            found[-1] += parameters
        elif parameters:
            found.append(list(parameters))
    named = {name for names in found for name in names}
    found[0] += [name for name, _ in network.named_parameters() if name not in named]  # such as a class token
    return found


def _children(network: nn.Module) -> list[tuple[str, nn.Module]]:
    *body, last = network.named_children()
    while True:
        sizes = [sum(value.numel() for value in child.parameters()) for _, child in body]
        place = max(range(len(body)), key=lambda number: sizes[number], default=0)
        if not body or sizes[place] <= _NEARLY_ALL * sum(sizes) or len(list(body[place][1].children())) < 2:
            return [*body, last]
        name, largest = body[place]
        body[place : place + 1] = [(f"{name}.{inner}", part) for inner, part in largest.named_children()]


def classifier(network: nn.Module) -> list[nn.Module]:
    """What timm calls the classifier; in other networks the last module that has parameters of its own."""
    if hasattr(network, "get_classifier"):
        found = cast(Any, network).get_classifier()
        return list(found) if isinstance(found, Iterable) else [found]
    return [[part for part in network.modules() if next(part.parameters(recurse=False), None) is not None][-1]]


def frozen_parameters(network: nn.Module, freeze: int | Literal["backbone"]) -> list[nn.Parameter]:
    """The parameters of the first ``freeze`` stages, or all but the classifier's.

    Raises:
        ValueError: there are not so many stages before the classifier; one sentence that begins with the key.
    """
    if freeze == "backbone":
        learning = {id(value) for part in classifier(network) for value in part.parameters()}
        return [value for value in network.parameters() if id(value) not in learning]
    found = stages(network) if freeze else []
    if freeze >= max(len(found), 1):
        raise ValueError(
            f"freeze is {freeze}, but {type(network).__name__} has {len(found)} stages, the last with the classifier; "
            f"set it to at most {len(found) - 1}, or to backbone"
        )
    values = dict(network.named_parameters())
    return [values[name] for names in found[:freeze] for name in names]


@contextmanager
def frozen(network: nn.Module, freeze: int | Literal["backbone"]) -> Iterator[None]:
    """Within the block, the parameters of :func:`frozen_parameters` have no gradient."""
    parameters = frozen_parameters(network, freeze)
    for value in parameters:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in parameters:
            value.requires_grad_(True)


def train_mode(network: nn.Module) -> None:
    """Put the network into training mode, but for its frozen parts: their batch statistics stay too."""
    network.train()
    for part in network.modules():
        parameters = list(part.parameters())
        if parameters and not any(value.requires_grad for value in parameters):
            part.eval()
