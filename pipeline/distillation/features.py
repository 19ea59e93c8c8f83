"""Feature maps of named submodules, captured by forward hooks: what a network returns never changes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.store.documents import Shape


class FeatureTap:
    """The outputs of named submodules of one network, as its latest forward pass made them.

    Hooks are in place inside ``with tap:``; nothing else of the network is touched. The features are the tensors of the
    forward pass themselves, with their gradients; an in-place layer that follows changes them. If a submodule runs more
    than once, its last output counts. A copy made inside keeps the hooks, so copy and export outside.

    Args:
        network: the network to observe; its outputs and parameters do not change.
        names: dotted names of submodules, as in `named_modules`.

    Raises:
        ValueError: the network has no submodule of one of the names.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        modules = dict(network.named_modules())
        del modules[""]
        for name in names:
            if name not in modules:
                raise ValueError(_missing(network, name, modules))
        self.names = tuple(names)
        self._modules = {name: modules[name] for name in self.names}
        self._handles: list[RemovableHandle] = []
        self._outputs: dict[str, Any] = {}

    def __enter__(self) -> FeatureTap:
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()

    def features(self) -> list[Tensor]:
        """The captured outputs in the order of ``names``, handed out once: afterwards the tap holds no tensors.

        Raises:
            ValueError: a submodule has not run since the last call, or returned something other than a tensor.
        """
        outputs, self._outputs = self._outputs, {}
        for name in self.names:
            if name not in outputs:
                raise ValueError(f'Submodule "{name}" gave no feature: the network did not run it; name another.')
            if not isinstance(outputs[name], Tensor):
                kind = type(outputs[name]).__name__
                raise ValueError(f'Submodule "{name}" returns a {kind}, not a tensor: name one that returns a tensor.')
        return [outputs[name] for name in self.names]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            self._outputs[name] = output

        return keep


def feature_shapes(network: nn.Module, names: Sequence[str], shape: Shape) -> list[tuple[int, ...]]:
    """The shapes of the submodules' outputs for one image, without the batch: (C, H, W) for feature maps.

    The network runs once in eval mode on zeros of ``shape`` [C, H, W], on its own device and in its own type; its modes
    are restored, and its running statistics do not change.

    Raises:
        ValueError: the image would have no pixel, a submodule does not exist, or one gives no tensor.
    """
    if min(shape) < 1:
        raise ValueError(f"the shape of an image has positive sizes [C, H, W], not {list(shape)}")
    modes = {part: part.training for part in network.modules()}
    some_weight = next(network.parameters(), torch.empty(0))
    image = torch.zeros(1, *shape, device=some_weight.device, dtype=some_weight.dtype)
    with FeatureTap(network, names) as tap, torch.no_grad():
        try:
            network.eval()
            network(image)
        finally:
            for part, training in modes.items():
                part.training = training
        return [tuple(feature.shape[1:]) for feature in tap.features()]


def _missing(network: nn.Module, name: str, modules: dict[str, nn.Module]) -> str:
    closest = difflib.get_close_matches(name, modules)
    if not closest:
        closest = [child for child, _ in network.named_children()]
    return f'{type(network).__name__} has no submodule "{name}": the closest names are {", ".join(closest)}.'
