"""Capturing features of a network that stays as it is."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import models
from pipeline.distillation.features import FeatureTap, feature_shapes
from pipeline.export.capture import capture
from pipeline.export.graph import from_program


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Small(nn.Module):
    """Two stages, one layer that does not run, one that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.pair = Pair()
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        left, _ = self.pair(self.second(self.first(x)))
        return left.mean(dim=(2, 3))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_features_come_in_the_order_of_the_names_with_their_gradients() -> None:
    network, images = Small(), torch.randn(2, 3, 8, 8)
    with FeatureTap(network, ["second", "first"]) as tap:
        network(images)
        second, first = tap.features()
    assert second.shape == (2, 6, 4, 4)
    torch.testing.assert_close(network.second(first), second)
    second.sum().backward()
    assert network.first[0].weight.grad is not None


def test_the_output_of_the_network_is_the_same_with_and_without_a_tap() -> None:
    network, images = Small().eval(), torch.randn(2, 3, 8, 8)
    plain = network(images)
    with FeatureTap(network, ["first", "second"]):
        assert torch.equal(network(images), plain)


def test_features_are_handed_out_once() -> None:
    network = Small()
    with FeatureTap(network, ["first"]) as tap:
        network(torch.randn(2, 3, 8, 8))
        tap.features()
        with pytest.raises(ValueError, match='"first" gave no feature'):
            tap.features()


def test_the_latest_pass_counts() -> None:
    network = Small()
    with FeatureTap(network, ["first"]) as tap:
        network(torch.randn(2, 3, 8, 8))
        network(torch.randn(5, 3, 8, 8))
        assert tap.features()[0].shape[0] == 5


def test_the_tap_holds_no_tensor_after_reading_or_closing() -> None:
    network = Small()
    with FeatureTap(network, ["first"]) as tap:
        network(torch.randn(2, 3, 8, 8))
        read = weakref.ref(tap.features()[0])
        network(torch.randn(2, 3, 8, 8))
        [feature] = tap._outputs.values()
        unread = weakref.ref(feature)
        del feature
    gc.collect()
    assert read() is None
    assert unread() is None


def test_hooks_exist_only_while_the_tap_is_open() -> None:
    network = Small()
    tap = FeatureTap(network, ["first", "second"])
    assert hooks(network) == 0
    with tap:
        assert hooks(network) == 2
    assert hooks(network) == 0
    with pytest.raises(RuntimeError), FeatureTap(network, ["first"]):
        network(torch.randn(2, 5, 8, 8))
    assert hooks(network) == 0
    with tap:
        network(torch.randn(2, 3, 8, 8))
        assert len(tap.features()) == 2


def test_two_taps_on_one_network_do_not_disturb_each_other() -> None:
    network = Small()
    with FeatureTap(network, ["first"]) as outer:
        with FeatureTap(network, ["first", "second"]):
            pass
        network(torch.randn(2, 3, 8, 8))
        assert len(outer.features()) == 1


@pytest.mark.parametrize(
    ("name", "closest"), [("frist", "first"), ("first.9", "first.0"), ("zzzz", "first, second"), ("", "first")]
)
def test_a_missing_submodule_is_one_sentence_with_the_closest_names(name: str, closest: str) -> None:
    with pytest.raises(ValueError, match="has no submodule") as caught:
        FeatureTap(Small(), ["first", name])
    message = str(caught.value)
    assert f'Small has no submodule "{name}"' in message
    assert closest in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_submodule_that_gives_no_tensor_is_named() -> None:
    network = Small()
    with FeatureTap(network, ["pair"]) as tap:
        network(torch.randn(2, 3, 8, 8))
        with pytest.raises(ValueError, match='"pair" returns a tuple, not a tensor'):
            tap.features()
    with FeatureTap(network, ["unused"]) as tap:
        network(torch.randn(2, 3, 8, 8))
        with pytest.raises(ValueError, match='"unused" gave no feature'):
            tap.features()


def test_shapes_leave_modes_statistics_generator_and_hooks_as_they_were() -> None:
    network = Small().train()
    network.first[1].eval()
    before, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert feature_shapes(network, ["first", "second"], (3, 8, 8)) == [(4, 8, 8), (6, 4, 4)]
    assert network.training
    assert not network.first[1].training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert hooks(network) == 0


def test_shapes_put_modes_and_hooks_back_when_the_forward_fails() -> None:
    network = Small().train()
    network.second = nn.Conv2d(5, 6, 3)
    with pytest.raises(RuntimeError):
        feature_shapes(network, ["first"], (3, 8, 8))
    assert network.training
    assert hooks(network) == 0


def test_shapes_need_an_image() -> None:
    with pytest.raises(ValueError, match="shape of an image"):
        feature_shapes(Small(), ["first"], (3, 8, 0))


@pytest.mark.parametrize(
    ("name", "stages", "shapes"),
    [
        ("vgg8", ["block0", "block4"], [(64, 32, 32), (512, 4, 4)]),
        ("torchvision:mobilenet_v3_small", ["features.1", "features.8"], [(16, 8, 8), (48, 2, 2)]),
        ("timm:resnet18", ["layer1", "layer4"], [(64, 8, 8), (512, 1, 1)]),
    ],
)
def test_registry_and_library_networks_can_be_tapped(
    name: str, stages: list[str], shapes: list[tuple[int, ...]]
) -> None:
    with torch.device("meta"):
        network = models.build(name, 10)
    assert feature_shapes(network, stages, (3, 32, 32)) == shapes


def test_the_exported_file_is_the_same_before_and_after_a_tap() -> None:
    network = Small().eval()
    keys = list(network.state_dict())

    def exported() -> bytes:
        return from_program(capture(network, (3, 32, 32), "student"), 18).SerializeToString(deterministic=True)

    before = exported()
    with FeatureTap(network, ["first", "second"]) as tap, torch.no_grad():
        network(torch.randn(2, 3, 32, 32))
        tap.features()
    assert list(network.state_dict()) == keys
    assert hooks(network) == 0
    assert exported() == before
