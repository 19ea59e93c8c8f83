"""The 23 networks for small images against the reference figures in tests/golden (see its README.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import models
from models.describe import count_macs, count_parameters
from models.resnet import NARROW, ResNet
from models.shufflenet_v1 import ShuffleUnit
from models.shufflenet_v2 import BasicUnit, DownUnit
from models.vgg import VGG
from models.wide_resnet import WideResNet

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "networks.json").read_text())
SMALL = ["MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet8", "vgg8", "wrn_16_1"]


def stages(name: str) -> list[str]:
    """The submodules whose outputs have the shapes of the reference's features."""
    if name == "MobileNetV2":
        return ["conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    if name.startswith("vgg"):
        return [f"block{index}" for index in range(5)]
    if name.startswith("wrn"):
        return ["conv1", "block1", "block2", "block3"]
    if name.startswith("ResNet"):
        return ["bn1", "layer1", "layer2", "layer3", "layer4"]
    return ["bn1", "layer1", "layer2", "layer3"]


def wave_input() -> Tensor:
    return torch.sin(0.01 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)).reshape(2, 3, 32, 32).float()


def wave(name: str, _position: int, shape: torch.Size) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.sin(0.37 * np.arange(shape.numel()) + len(name))
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(values)
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    return values * math.sqrt(0.25 / (shape.numel() // shape[0]))


def noise(n: int, stream: int) -> NDArray[np.float64]:
    bits = np.arange(n, dtype=np.uint32) + np.uint32(stream * 0x9E3779B9 % 2**32)
    bits ^= bits >> np.uint32(16)
    bits *= np.uint32(0x7FEB352D)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(0x846CA68B)
    bits ^= bits >> np.uint32(16)
    return bits / 2.0**31 - 1.0


def noise_input() -> Tensor:
    return torch.from_numpy(math.sqrt(3) * noise(2 * 3 * 32 * 32, 0)).reshape(2, 3, 32, 32).float()


def noisy(name: str, position: int, shape: torch.Size) -> NDArray[np.float64]:
    values = noise(shape.numel(), position + 1)
    if name.endswith("running_var"):
        return 1 + 0.1 * values
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    return values * math.sqrt(6 / (shape.numel() // shape[0]))


def load_logits(file: str) -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN / file) as arrays:
        return dict(arrays)


WAVE_LOGITS = load_logits("network_logits.npz")
NOISE_LOGITS = load_logits("network_logits_noise.npz")


def build_filled(name: str, rule: Callable[[str, int, torch.Size], NDArray[np.float64]]) -> nn.Module:
    # On the meta device no time goes into the initial weights, which are replaced at once.
    with torch.device("meta"):
        network = models.build(name, 100)
    weights = {}
    for position, (key, tensor) in enumerate(network.state_dict().items()):
        if tensor.is_floating_point():
            weights[key] = torch.from_numpy(rule(key, position, tensor.shape)).reshape(tensor.shape).float()
        else:
            weights[key] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """Each of the 23 networks once, with its name and the weights of the wave rule."""
    return request.param, build_filled(request.param, wave)


def assert_logits(logits: Tensor, expected: NDArray[np.float32]) -> None:
    assert logits.shape == expected.shape
    # Relative to the largest logit: single logits lie close to zero by chance.
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_available_lists_the_reference_networks_sorted() -> None:
    assert models.available() == sorted(NETWORKS)
    assert len(NETWORKS) == 23


def test_state_dict_has_the_names_order_and_shapes_of_public_checkpoints(case: tuple[str, nn.Module]) -> None:
    name, network = case
    found = [(key, list(tensor.shape)) for key, tensor in network.state_dict().items()]
    assert found == list(NETWORKS[name]["state_dict"].items())


def test_parameters_and_macs_equal_the_reference(case: tuple[str, nn.Module]) -> None:
    name, network = case
    assert count_parameters(network) == NETWORKS[name]["parameters"]
    assert count_macs(network, (3, 32, 32)) == NETWORKS[name]["macs"]


def test_logits_and_the_shapes_of_the_stage_outputs_equal_the_reference(case: tuple[str, nn.Module]) -> None:
    name, network = case
    shapes: list[list[int]] = []
    hooks = [
        network.get_submodule(stage).register_forward_hook(lambda _m, _i, output: shapes.append(list(output.shape)))
        for stage in stages(name)
    ]
    with torch.no_grad():
        logits = network(wave_input())
    for hook in hooks:
        hook.remove()
    assert shapes == NETWORKS[name]["features"]
    assert_logits(logits, WAVE_LOGITS[name])


@pytest.mark.parametrize("name", sorted(NOISE_LOGITS))
def test_logits_equal_the_reference_where_every_layer_matters(name: str) -> None:
    with torch.no_grad():
        logits = build_filled(name, noisy)(noise_input())
    assert_logits(logits, NOISE_LOGITS[name])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("height_width", [(33, 33), (64, 64), (48, 80)])
def test_images_of_any_size_from_32_give_one_row_of_logits_each(name: str, height_width: tuple[int, int]) -> None:
    with torch.no_grad():
        assert models.build(name, 7).eval()(torch.zeros(2, 3, *height_width)).shape == (2, 7)


def test_vgg_pools_once_more_from_64_pixels_on() -> None:
    network = models.build("vgg8", 7).eval()
    sizes: list[int] = []
    network.get_submodule("block4").register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        for size in (32, 56, 64, 96):
            network(torch.zeros(1, 3, size, size))
    assert sizes == [4, 7, 4, 6]


@pytest.mark.parametrize("name", [*SMALL, "ResNet18", "resnet8x4", "wrn_16_2", "wrn_40_1", "wrn_40_2"])
def test_one_training_forward_updates_each_batch_norm_exactly_once(name: str) -> None:
    network = models.build(name, 10).train()
    network(torch.randn(2, 3, 32, 32))
    counters = {key: int(value) for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    assert set(counters.values()) == {1}


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = models.build(name, 10).train()
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_gives_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    network = models.build(name, 10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
        network = network.to(memory_format=torch.channels_last)
        logits = network(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights(name: str) -> None:
    torch.manual_seed(3)
    first = models.build(name, 10).state_dict()
    torch.manual_seed(3)
    again = models.build(name, 10).state_dict()
    other = models.build(name, 10).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_fresh_convolutions_have_the_kaiming_scale_also_where_they_are_grouped() -> None:
    torch.manual_seed(0)
    network = models.build("MobileNetV2", 10)
    expansion = network.get_parameter("conv2.0.weight")
    depthwise = network.get_parameter("blocks.6.0.conv.3.weight")
    assert expansion.std().item() == pytest.approx(math.sqrt(2 / 1280), rel=0.02)
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (VGG(8, 10), (2, 3, 32, 32)),
        (ShuffleUnit(24, 60, 2), (2, 24, 8, 8)),
        (nn.Sequential(DownUnit(8, 16), BasicUnit(16)), (2, 8, 8, 8)),
    ],
    ids=["vgg8", "shufflenet_v1", "shufflenet_v2"],
)
def test_torch_export_keeps_the_batch_dynamic(module: nn.Module, shape: tuple[int, ...]) -> None:
    module.eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(module, (torch.randn(shape),), dynamic_shapes=dynamic)
    images = torch.randn(5, *shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), module(images), rtol=1e-4, atol=1e-5)


def test_a_depth_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6n\+2.*not 21"):
        ResNet(21, NARROW, 10)
    with pytest.raises(ValueError, match=r"6n\+4.*not 20"):
        WideResNet(20, 1, 10)
    with pytest.raises(ValueError, match="not 12"):
        VGG(12, 10)
