"""Frozen networks by ONNX Runtime, and the choice between it and torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.soft_labels import passes
from pipeline.soft_labels.passes import ConversionError, ConvertedNetwork, fastest
from pipeline.training.session import Session
from tests.distillation.helpers import CPU, build
from tests.training.helpers import network


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return build("resnet8", 1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def converted(teacher, images) -> ConvertedNetwork:
    return ConvertedNetwork(teacher, images)


@torch.no_grad()
def test_the_logits_are_those_of_torch_but_for_their_last_bits(teacher, converted):
    for seed in (1, 2):
        images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        images = images.to(memory_format=torch.channels_last)
        expected, found = teacher(images), converted(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        assert not torch.equal(found, expected), "other kernels add in another order"
        assert torch.equal(found, converted(images)), "the same images have the same logits, bit for bit"


def test_a_batch_of_another_size_is_computed_by_torch(teacher, converted, images):
    assert torch.equal(converted(images[:4]), teacher(images[:4]))


def test_a_network_whose_logits_are_others_is_refused(images):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(3 * 16 * 16, 4)

        def forward(self, images):
            return self.part(images.flatten(1)) + torch.rand(len(images), 4)

    with pytest.raises(ConversionError, match="its logits differ from those of torch by "):
        ConvertedNetwork(Noisy().eval().requires_grad_(False), images)


def test_what_cannot_be_traced_is_refused(images):
    class Branching(nn.Module):
        def forward(self, images):
            return images.flatten(1) if float(images.sum()) > 0 else images.flatten(1)[:, :4]

    with pytest.raises(ConversionError):
        ConvertedNetwork(Branching(), images)


def test_without_onnxruntime_the_network_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConversionError, match="import of onnxruntime halted"):
        ConvertedNetwork(network(1).eval(), torch.zeros(2, 3, 4, 4))


@pytest.fixture
def chosen(monkeypatch, teacher, images, tmp_path):
    """What is chosen, and what is told, if all passes take torch and ONNX Runtime so many seconds each."""

    def choose(torch_seconds: float, other: float, calls: int = 100) -> tuple[type, list[str]]:
        told: list[str] = []
        seconds = {ConvertedNetwork: other}
        monkeypatch.setattr(passes, "_seconds", lambda found, _: seconds.get(type(found[0]), torch_seconds))
        [found] = fastest([teacher], images, calls, tmp_path, Session(CPU, tell=told.append))
        return type(found), told

    return choose


@pytest.mark.parametrize(
    ("seconds", "kind", "words"),
    [
        (
            (1.0, 0.5),
            ConvertedNetwork,
            ["teacher in ONNX Runtime; 6 images take 1 s in torch and 0.5 s in ONNX Runtime"],
        ),
        ((1.0, 0.95), None, ["teacher in torch; 6 images take 1 s in torch and 0.95 s in ONNX Runtime"]),
        ((0.5, 0.1), None, []),
    ],
    ids=["faster", "as fast", "soon done"],
)
def test_the_faster_one_is_chosen_if_there_is_enough_to_do(chosen, teacher, seconds, kind, words):
    assert chosen(*seconds) == (kind or type(teacher), words)


def test_a_run_that_goes_on_keeps_its_choice_without_timing(chosen, teacher):
    assert chosen(1.0, 0.5)[0] is ConvertedNetwork
    assert chosen(1.0, 2.0) == (ConvertedNetwork, [])


def test_a_network_that_cannot_be_converted_stays_in_torch_and_it_is_told(chosen, monkeypatch, teacher):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    kind, [told] = chosen(1.0, 0.5)
    assert kind is type(teacher)
    assert told.startswith("teacher in torch, because ONNX Runtime cannot take its place (import of onnxruntime halted")


def test_on_a_gpu_it_is_torch(teacher, images, tmp_path: Path):
    assert fastest([teacher], images, 10**9, tmp_path, Session(torch.device("cuda"))) == [teacher]
    assert not list(tmp_path.iterdir())
