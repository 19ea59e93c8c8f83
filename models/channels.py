"""Networks for images of another number of channels than the three of RGB."""

from collections.abc import Mapping

from torch import Tensor, nn

from models.libraries import NetworkOptionError


def with_channels(network: nn.Module, channels: int) -> nn.Module:
    """Change a network for RGB images in place so that it takes images of ``channels``, 1 or 3; return it.

    The new weights are the sum over red, green and blue: a grey image gets the features that it had as an RGB image.
    All convolutions of three channels are changed: some networks read the image by several (RepVGG, CrossViT), and
    none of ours, torchvision's or timm's has such a layer elsewhere.

    Raises:
        NetworkOptionError: no convolution takes the image, as with a rearrangement of its pixels (TResNet).
    """
    if channels == 3:
        return network
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3 and layer.groups == 1
    ]
    if not layers:
        raise NetworkOptionError(
            f"{type(network).__name__} has no convolution that reads an image of 3 channels, so it cannot be changed "
            f"to read {channels}; choose another network, or set data.channels to 3"
        )
    for layer in layers:
        layer.in_channels = channels
        layer.weight = nn.Parameter(layer.weight.detach().sum(dim=1, keepdim=True))
    return network


def for_grey(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of an RGB network as :func:`with_channels` changes them, where ``network`` takes grey images."""
    own = network.state_dict()
    rgb = {
        name for name in own.keys() & state.keys() if own[name].shape[1:2] == (1,) and state[name].shape[1:2] == (3,)
    }
    return {name: value.sum(dim=1, keepdim=True) if name in rgb else value for name, value in state.items()}
