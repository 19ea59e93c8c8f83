"""Precision of the passes of a network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from pipeline.compute.device import autocast, bf16_conv_workaround, can_compile, compiled, full_fp32
from tests.conftest import ROOT

CPU = torch.device("cpu")
# a convolution over maps of one pixel, of whose kernel all but the middle meets the padding alone
GRADIENT = """
import torch
from torch import nn
from pipeline.compute.device import autocast, bf16_conv_workaround
network = nn.Conv2d(144, 144, 5, stride=2, padding=2, groups=144).to(memory_format=torch.channels_last)
with bf16_conv_workaround(network, torch.device("cpu")), autocast("bf16", torch.device("cpu")):
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
    with bf16_conv_workaround(network, CPU), autocast("bf16", CPU):
        assert network(torch.randn(2, 3, size, size)).dtype == expected
    with autocast("bf16", CPU):
        assert network(torch.randn(2, 3, size, size)).dtype == torch.bfloat16
    assert "forward" not in vars(network[0])


def test_tf32_is_off_while_it_lasts():
    with pytest.raises(ZeroDivisionError), full_fp32():
        assert not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32


def test_many_depths_and_batch_sizes_of_one_network_are_all_compiled_and_once(monkeypatch):
    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    # of one class, so their passes are one piece of code whatever their depth
    networks = [nn.Sequential(*(nn.Linear(2, 2) for _ in range(depth))) for depth in (1, 2, 3)]
    for _ in range(2):
        with compiled(*networks):
            for network in networks:
                for size in (2, 3, 4, 5):
                    network(torch.randn(size, 2))
    assert graphs.frame_count == 3 * 4, "more than torch compiles unless it is told to, and none of them twice"


def test_a_network_is_compiled_only_while_it_lasts(monkeypatch):
    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ZeroDivisionError), compiled(network):
        raise ZeroDivisionError
    network(torch.randn(2, 2))
    assert graphs.frame_count == 0
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("device", "programs", "headers", "able"),
    [
        ("cpu", ["g++"], True, True),
        ("cpu", ["g++"], False, False),
        ("cpu", ["gcc"], True, False),
        ("cuda", ["gcc"], True, True),
        ("cuda", ["gcc"], False, False),
        ("cuda", [], True, False),
    ],
)
def test_compiling_needs_a_compiler_and_the_headers_of_python(tmp_path, monkeypatch, device, programs, headers, able):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in programs else None)
    if headers:
        (tmp_path / "Python.h").touch()
    assert can_compile(torch.device(device)) is able
