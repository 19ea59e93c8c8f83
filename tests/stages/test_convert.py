"""`python -m stages.convert`: weights of other programs under the names of a network."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import models
from tests.stages.conftest import run_program_here


class Gone:
    """Of a program that is not installed where its pickle is read."""

    def __reduce__(self):
        return __import__, ("gone_module",)


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return models.build("resnet8", 6).eval()


def converted(network) -> bool:
    return all(torch.equal(value, network.state_dict()[key]) for key, value in load_file("b.safetensors").items())


def test_other_names_that_fit_in_order_and_shape_are_taken_and_said(network, capsys):
    state = OrderedDict((f"_{key.replace('conv', 'c')}", value) for key, value in network.state_dict().items())
    torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, "a.pth")
    run_program_here("convert", "a.pth", "b.safetensors", "--to", "resnet8", expected=0)
    said = capsys.readouterr().out
    assert "b.safetensors holds the weights of resnet8; its names differ, so the tensors were" in said
    assert converted(network)


def test_a_pickled_network_a_torchscript_program_and_arrays_need_a_clear_yes(network, capsys):
    torch.save(network, "a.pth")
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save("a.pt")
    torch.save({name: value.numpy() for name, value in network.state_dict().items()}, "arrays.pth")
    for name in ("a.pth", "a.pt", "arrays.pth"):
        said = run_program_here("convert", name, "b.safetensors", "--to", "resnet8", expected=2)
        assert "python -m stages.convert" in said
        run_program_here("convert", name, "b.safetensors", "--to", "resnet8", "--run-code", expected=0)
        assert "the weights of resnet8\n" in capsys.readouterr().out
        assert converted(network)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.pth", "b.pth", "--to", "resnet8"), "b.pth is no .safetensors file in a folder that exists; name another"),
        (("a.pth", "none/b.safetensors", "--to", "resnet8"), "none/b.safetensors is no .safetensors file in a folder"),
        (("a.pth", "b.safetensors", "--to", "resnet8", "--classes", "0"), "0 is not a whole number above 0"),
        (("a.pth", "b.safetensors", "--to", "resnet8", "--classes", "5"), "in place of [5, 64]; correct --to or --cl"),
        (("text", "b.safetensors", "--to", "resnet8", "--run-code"), "text cannot be read ("),
        (("gone.pth", "b.safetensors", "--to", "resnet8", "--run-code"), "needs the program that wrote it (No module"),
        (("a.pth", "b.safetensors", "--to", "resnet9"), "There is no network resnet9"),
        (("a.pth", "b.safetensors", "--to", "resnet14"), "a.pth is not a checkpoint of this network"),
        (("a.pth", "b.safetensors", "--to", "resnet8", "--entry", "ema"), "a.pth holds no state dict ema, but"),
        (("c.pth", "b.safetensors", "--to", "resnet8", "--run-code"), "c.pth does not exist"),
    ],
)
def test_mistakes_are_one_sentence(network, arguments, words):
    torch.save(network.state_dict(), "a.pth")
    Path("text").write_text("hello")
    torch.save(Gone(), "gone.pth")
    assert words in run_program_here("convert", *arguments, expected=2)


def test_a_pickled_network_under_a_key_and_classes_that_are_not_in_the_last_tensor(network):
    state = dict(sorted(network.state_dict().items(), reverse=True))
    torch.save({"model": network, "epoch": 3}, "a.pth")
    torch.save(state, "b.pth")
    for name, options in (("a.pth", ["--run-code"]), ("b.pth", [])):
        run_program_here("convert", name, "b.safetensors", "--to", "resnet8", *options, expected=0)
        assert converted(network)
