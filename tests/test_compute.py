"""Precision of the passes of a network."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.compute import autocast, whole_gradients
from tests.conftest import ROOT

CPU = torch.device("cpu")
# a convolution over maps of one pixel, of whose kernel all but the middle meets the padding alone
GRADIENT = """
import torch
from torch import nn
from pipeline.compute import autocast, whole_gradients
network = nn.Conv2d(144, 144, 5, stride=2, padding=2, groups=144).to(memory_format=torch.channels_last)
with whole_gradients(network, torch.device("cpu")), autocast("bf16", torch.device("cpu")):
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
    with whole_gradients(network, CPU), autocast("bf16", CPU):
        assert network(torch.randn(2, 3, size, size)).dtype == expected
    with autocast("bf16", CPU):
        assert network(torch.randn(2, 3, size, size)).dtype == torch.bfloat16
    assert "forward" not in vars(network[0])
