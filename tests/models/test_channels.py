"""Networks that are changed to read grey images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import models
from models.channels import with_channels


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet8", 32),
        ("MobileNetV2", 32),
        ("ShuffleV1", 32),
        ("ShuffleV2", 32),
        ("vgg8", 32),
        ("wrn_16_1", 32),
        ("ResNet18", 32),
        ("torchvision:mobilenet_v3_small", 32),
        ("timm:tf_mobilenetv3_small_minimal_100", 32),
        ("timm:repvgg_a0", 32),
        ("timm:mobileone_s0", 32),
        ("timm:vit_tiny_patch16_224", 224),
    ],
)
def test_a_grey_image_gives_the_logits_that_it_gives_as_rgb(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = models.build(name, 5).eval()
    grey = torch.randn(2, 1, size, size)
    with torch.inference_mode():
        expected = network(grey.expand(-1, 3, -1, -1))
    kinds = [type(module) for module in network.modules()]
    changed = with_channels(network, 1)
    assert [type(module) for module in changed.modules()] == kinds
    with torch.inference_mode():
        torch.testing.assert_close(changed(grey), expected, rtol=1e-3, atol=1e-4)


def test_a_network_for_three_channels_stays_as_it_is() -> None:
    network = models.build("resnet8", 5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert with_channels(network, 3) is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_changed_layer_keeps_its_bias_and_padding_and_is_trained() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 3, 1))
    bias = network[0].bias
    layer = with_channels(network, 1)[0]
    assert (layer.in_channels, layer.padding_mode, layer.bias) == (1, "reflect", bias)
    assert layer.weight.requires_grad
    assert network[1].in_channels == 4


def test_a_network_that_rearranges_the_pixels_first_is_refused_in_one_sentence() -> None:
    network = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3))
    with pytest.raises(ValueError, match=r"no convolution that reads an image of 3 channels.*; choose another network"):
        with_channels(network, 1)
