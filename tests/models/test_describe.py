"""Counting parameters and multiply-accumulates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.describe import count_macs, count_parameters


class Twice(nn.Module):
    """Runs one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.conv(x))
        return out


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def test_parameters_are_the_learnable_scalars_without_buffers() -> None:
    assert count_parameters(small_network()) == (3 * 4 * 9 + 4) + (4 + 4) + (2 * 8 * 9) + (8 * 5 + 5)


def test_macs_follow_stride_groups_and_image_size() -> None:
    network = small_network()
    assert count_macs(network, (3, 8, 8)) == 16 * 4 * 27 + 16 * 8 * 18 + 8 * 5
    assert count_macs(network, (3, 16, 16)) == 64 * 4 * 27 + 64 * 8 * 18 + 8 * 5


def test_a_layer_that_runs_twice_counts_twice() -> None:
    assert count_macs(Twice(), (3, 4, 4)) == 2 * 16 * 3 * 27


def test_counting_leaves_modes_hooks_and_running_statistics_as_they_were() -> None:
    network = small_network().train()
    network[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count_macs(network, (3, 8, 8))
    assert network.training
    assert not network[1].training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(not module._forward_hooks for module in network.modules())


def test_modes_and_hooks_are_put_back_when_the_forward_fails() -> None:
    network = small_network().train()
    network[5] = nn.Linear(9, 5)
    with pytest.raises(RuntimeError):
        count_macs(network, (3, 8, 8))
    assert network.training
    assert all(not module._forward_hooks for module in network.modules())


def test_the_image_must_have_pixels() -> None:
    with pytest.raises(ValueError, match="shape of an image"):
        count_macs(small_network(), (3, 0, 0))
