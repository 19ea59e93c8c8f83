"""Convolutions over tiny maps against those of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.compute.convolutions import DepthwiseConvolution, mended_convolutions
from pipeline.compute.device import autocast, compiled
from tests.conftest import ROOT

CPU = torch.device("cpu")
# a convolution over maps of one pixel, of whose kernel all but the middle meets the padding alone
GRADIENT = """
import torch
from torch import nn
from pipeline.compute.convolutions import mended_convolutions
from pipeline.compute.device import autocast
network = nn.Conv2d(144, 144, 5, stride=2, padding=2, groups=144).to(memory_format=torch.channels_last)
with mended_convolutions(network, torch.device("cpu")), autocast("bf16", torch.device("cpu")):
    network(torch.randn(16, 144, 1, 1)).float().square().mean().backward()
gradient = network.weight.grad.clone()
gradient[:, :, 2, 2] = 0
print(float(gradient.abs().max()))
"""


def test_weights_that_meet_the_padding_alone_have_no_gradient_in_bf16():
    # so that memory which nobody wrote to is not zero by luck
    environment = os.environ | {"MALLOC_PERTURB_": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", GRADIENT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == 0.0


@pytest.mark.parametrize(("size", "expected"), [(1, torch.float32), (4, torch.bfloat16)])
def test_only_maps_of_one_pixel_are_left_out_of_bf16_and_only_while_it_lasts(size, expected):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with mended_convolutions(network, CPU), autocast("bf16", CPU):
        assert network(torch.randn(2, 3, size, size)).dtype == expected
    with autocast("bf16", CPU):
        assert network(torch.randn(2, 3, size, size)).dtype == torch.bfloat16
    assert "forward" not in vars(network[0])


@settings(deadline=None)
@given(st.data())
def test_gradients_of_depthwise_convolutions_are_those_of_torch(data):
    number = st.integers(1, 6)
    size, kernel, stride = (data.draw(st.tuples(number, number)) for _ in range(3))
    padding = tuple(
        data.draw(st.integers(max(0, -(-(kernel[axis] - size[axis]) // 2)), 4)) for axis in (0, 1)
    )  # at least so much that there is an output
    channels, biased = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shapes = [(2, channels, *size), (channels, 1, *kernel), *([(channels,)] if biased else [])]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    images, weight, bias = inputs if biased else (*inputs, None)
    expected = F.conv2d(images, weight, bias, stride, padding, groups=channels)
    found = DepthwiseConvolution.apply(images, weight, bias, stride, padding)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    theirs = torch.autograd.grad(expected, inputs, gradient)
    for ours, their in zip(torch.autograd.grad(found, inputs, gradient), theirs, strict=True):
        torch.testing.assert_close(ours, their)


def depthwise(**options) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 5, groups=4, **({"padding": 2} | options))


@pytest.mark.parametrize(
    ("convolution", "size", "ours"),
    [
        (depthwise(), 4, True),
        (depthwise(), 5, False),
        (depthwise(bias=False, stride=2), 2, True),
        (depthwise(padding="same"), 4, False),
        (depthwise(padding_mode="reflect"), 4, False),
        (depthwise(dilation=2, padding=4), 4, False),
        (nn.Conv2d(4, 8, 5, padding=2, groups=4), 4, False),
        (nn.Conv2d(4, 4, 5, padding=2), 4, False),
    ],
)
def test_depthwise_convolutions_whose_kernel_is_larger_than_the_map_are_ours(convolution, size, ours):
    images = torch.randn(2, 4, size, size)
    plain = convolution(images)
    plain.square().sum().backward()
    expected = [part.grad.clone() for part in convolution.parameters()]
    convolution.zero_grad()
    with (
        patch.object(DepthwiseConvolution, "apply", side_effect=DepthwiseConvolution.apply) as called,
        mended_convolutions(nn.Sequential(convolution), CPU),
    ):
        with torch.no_grad():
            convolution(images)
        assert not called.called
        found = convolution(images)
        found.square().sum().backward()
    assert called.called == ours
    torch.testing.assert_close(found, plain)
    for part, gradient in zip(convolution.parameters(), expected, strict=True):
        torch.testing.assert_close(part.grad, gradient)


def test_weights_that_are_frozen_get_no_gradient():
    convolution = depthwise().requires_grad_(requires_grad=False)
    images = torch.randn(2, 4, 3, 3, requires_grad=True)
    with mended_convolutions(nn.Sequential(convolution), CPU):
        convolution(images).sum().backward()
    assert images.grad is not None
    assert convolution.weight.grad is None


@pytest.mark.parametrize("size", [3, 8])
def test_compiled_networks_compute_the_same_gradients(size, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), depthwise(), nn.ReLU())
    images, found = torch.randn(2, 3, size, size), []
    for compile_too in (False, True):
        network.zero_grad()
        with mended_convolutions(network, CPU):
            if compile_too:
                with compiled(network):
                    network(images).square().sum().backward()
            else:
                network(images).square().sum().backward()
        found.append([part.grad.clone() for part in network.parameters()])
    torch.testing.assert_close(*found)
