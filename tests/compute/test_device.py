"""Precision of the passes of a network."""

from __future__ import annotations

import sys
import sysconfig
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from pipeline.compute.device import can_compile, compiled, full_fp32

CPU = torch.device("cpu")


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
