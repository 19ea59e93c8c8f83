"""Checkpoints of other programs: each layout loads, or is refused by its cause."""

from __future__ import annotations

import argparse
import logging
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.errors import CheckpointError
from pipeline.training.pretrained import matched, read_checkpoint

State = dict[str, Tensor]


class Network(nn.Module):
    """With the names that timm's and torchvision's networks have."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.bn1(self.conv1(images)).mean((2, 3)))


class Options:
    """Of a training program that is not installed where the checkpoint is read."""

    def __init__(self) -> None:
        self.rate = 0.1

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of the checkpoint's program was run")


@pytest.fixture
def trained() -> Network:
    torch.manual_seed(1)
    network = Network()
    network(torch.randn(8, 3, 5, 5))
    return network


def named(prefix: str, state: State) -> State:
    return OrderedDict((f"{prefix}{name}", value) for name, value in state.items())


def without_counter(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def profiled(state: State) -> State:
    return state | {"total_ops": torch.zeros(1), "bn1.total_params": torch.zeros(1)}


def in_two_parts(state: State) -> State:
    return {("head." if name.startswith("fc") else "backbone.") + name: value for name, value in state.items()}


def averaged(state: State) -> State:
    network = Network()
    network.load_state_dict(state)
    return AveragedModel(network).state_dict()


NOISE = {"conv1.weight": torch.full((4, 3, 3, 3), 7.0)}
LAYOUTS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "OrderedDict": OrderedDict,
    "DataParallel": lambda state: named("module.", state),
    "torch.compile": lambda state: named("_orig_mod.", state),
    "both": lambda state: named("module._orig_mod.", state),
    "Lightning": lambda state: {"state_dict": named("model.", state) | {"criterion.weight": torch.ones(3)}, "epoch": 3},
    "Lightning net": lambda state: {"state_dict": named("net.", state), "hyper_parameters": {"rate": 0.1}},
    "mmpretrain": lambda state: {"state_dict": in_two_parts(state), "meta": {"epoch": 1}},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "net": lambda state: {"net": state, "acc": 0.9},
    "model": lambda state: {"model": state, "lr_scheduler": {"last_epoch": 3}},
    "torchvision's references": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3},
    "timm's train.py": lambda state: {
        **{"state_dict": state | NOISE, "state_dict_ema": state},
        **{"arch": "resnet18", "args": argparse.Namespace(lr=0.1), "metric": np.float64(0.9)},
    },
    "ema_state_dict": lambda state: {"ema_state_dict": state, "state_dict": state | NOISE},
    "model_ema": lambda state: {"model_ema": averaged(state), "model": state | NOISE},
    "namespace": lambda state: {"state_dict": state, "args": types.SimpleNamespace(path=Path("x"))},
    "own class": lambda state: {"state_dict": state, "options": Options()},
    "numpy": lambda state: {"state_dict": state, "best": np.float32(0.5), "seen": np.arange(3)},
    "no counter": without_counter,
    "thop": profiled,
    "half": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    "parameters": lambda state: {name: nn.Parameter(value, requires_grad=False) for name, value in state.items()},
    "nested": lambda state: {"network": {"state_dict": state}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_loads(layout: str, trained: Network, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](trained.state_dict()), tmp_path / "a.pth")
    network = Network()
    network.load_state_dict(matched(network, read_checkpoint(tmp_path / "a.pth"), tmp_path / "a.pth"))
    for name, value in trained.state_dict().items():
        if layout != "no counter" or not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-3)


def test_the_old_format_and_safetensors_load(trained: Network, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in trained.state_dict().items()}, tmp_path / "a.safetensors")
    content = {"model": trained.state_dict(), "args": argparse.Namespace(lr=0.1), "options": Options()}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pth"):
        assert set(read_checkpoint(tmp_path / name)) == set(trained.state_dict())


def test_averaged_weights_are_said_and_an_entry_chooses(
    trained: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": trained.state_dict() | NOISE, "state_dict_ema": trained.state_dict()}, path)
    read_checkpoint(path)
    assert f"{path}: took the averaged weights state_dict_ema, not state_dict" in caplog.text
    caplog.clear()
    assert (read_checkpoint(path, "state_dict")["conv1.weight"] == 7).all()
    assert not caplog.text
    with pytest.raises(CheckpointError, match=r"holds no state dict weights, but state_dict, state_dict_ema; "):
        read_checkpoint(path, "weights")


def test_of_two_networks_one_must_be_named(trained: Network, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(named("teacher.", trained.state_dict()) | named("student.", Network().state_dict()), path)
    with pytest.raises(CheckpointError, match=r"holds two networks that fit, teacher\. and student\.; name one"):
        matched(Network(), read_checkpoint(path), path)
    found = matched(Network(), read_checkpoint(path, "teacher"), path)
    assert torch.equal(found["conv1.weight"], trained.conv1.weight)


def test_tensors_beside_the_network_are_left_out_and_said(
    trained: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.pth"
    torch.save(named("model.", trained.state_dict()) | {"loss.weight": torch.ones(3)}, path)
    with caplog.at_level(logging.WARNING):
        found = matched(Network(), read_checkpoint(path), path)
    assert set(found) == set(trained.state_dict())
    assert f"{path}: left out 1 tensors beside the network, such as loss.weight" in caplog.text


def test_a_loss_and_auxiliary_classifiers_beside_a_bare_network_are_left_out_but_a_further_block_is_not(
    trained: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beside = dict.fromkeys(("my_loss.weight", "AuxLogits.fc.bias", "layer5.0.weight"), torch.ones(3))
    found = matched(Network(), trained.state_dict() | beside, tmp_path)
    assert set(found) - set(trained.state_dict()) == {"layer5.0.weight"}
    assert "left out 2 tensors beside the network, such as my_loss.weight" in caplog.text


def test_a_classifier_outside_the_backbone_is_taken_and_said(
    trained: Network, caplog: pytest.LogCaptureFixture
) -> None:
    found = matched(Network(), in_two_parts(trained.state_dict()), Path("a.pth"))
    assert set(found) == set(trained.state_dict())
    assert "a.pth: took head.fc.weight as fc.weight, which is missing under backbone." in caplog.text


@pytest.mark.parametrize("averaged_first", [True, False])
def test_averaged_weights_beside_raw_ones_in_one_state_dict_are_taken_and_said(
    averaged_first: bool, trained: Network, caplog: pytest.LogCaptureFixture
) -> None:
    raw, average = trained.state_dict() | NOISE, named("ema.", trained.state_dict())
    found = matched(Network(), {**average, **raw} if averaged_first else {**raw, **average}, Path("a.pth"))
    assert torch.equal(found["conv1.weight"], trained.conv1.weight)
    assert "a.pth: took the averaged weights ema.; checkpoint_entry chooses others" in caplog.text


def test_a_suffix_in_capitals_is_a_suffix(trained: Network, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in trained.state_dict().items()}, tmp_path / "A.SAFETENSORS")
    assert set(read_checkpoint(tmp_path / "A.SAFETENSORS")) == set(trained.state_dict())


def test_a_wrong_entry_is_answered_with_the_keys_that_are_there(trained: Network, tmp_path: Path) -> None:
    torch.save({"a": {"b": {"c": {"d": trained.state_dict()}}}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds no state dict, but b; name the right one"):
        read_checkpoint(tmp_path / "a.pth", "a")


def test_tensors_of_another_network_stay_to_be_named(trained: Network) -> None:
    state = named("model.", trained.state_dict() | {"conv2.weight": torch.ones(3)})
    assert "conv2.weight" in matched(Network(), state, Path("a.pth"))


class Runs:
    """Would run code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code was run",)


def _torchscript(network: Network, path: Path) -> None:
    torch.jit.script(network).save(path)


def _exported(network: Network, path: Path) -> None:
    torch.export.save(torch.export.export(network.eval(), (torch.zeros(2, 3, 5, 5),)), path)


REFUSED: dict[str, tuple[Callable[[Network, Path], object], str]] = {
    "none": (lambda network, path: None, "does not exist; correct the path"),
    "folder": (lambda network, path: path.mkdir(), "is a folder; name the file in it"),
    "empty": (lambda network, path: path.write_bytes(b""), "is not a safetensors file or a plain state dict"),
    "text": (lambda network, path: path.write_text("hello"), "is not a safetensors file or a plain state dict"),
    "lfs": (
        lambda network, path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a pointer of Git LFS, not the weights; run `git lfs pull`",
    ),
    "page": (lambda network, path: path.write_text("\n<!DOCTYPE html><html>"), "is a saved web page; download"),
    "cut short": (
        lambda network, path: (torch.save(network.state_dict(), path), path.write_bytes(path.read_bytes()[:900])),
        "is not a safetensors file or a plain state dict",
    ),
    "TorchScript": (
        _torchscript,
        r"is a TorchScript program; write its weights with `python -m stages\.convert --run-c",
    ),
    "torch.export": (_exported, "is a torch.export program"),
    "whole network": (
        torch.save,
        r"holds a whole pickled network; write its weights with `python -m stages\.convert --",
    ),
    "network inside": (lambda network, path: torch.save({"model": network}, path), "holds a whole pickled network"),
    "arrays": (
        lambda network, path: torch.save({name: value.numpy() for name, value in network.state_dict().items()}, path),
        r"holds objects in place of tensors, such as arrays of numpy; convert it with `python -m stages\.convert --run",
    ),
    "list": (lambda network, path: torch.save([1, 2], path), "holds list, not a state dict"),
    "numbers": (lambda network, path: torch.save({"epoch": 3}, path), "holds no state dict, but epoch; name"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_holds_no_weights_is_refused_by_its_cause(kind: str, trained: Network, tmp_path: Path) -> None:
    write, cause = REFUSED[kind]
    path = tmp_path / "a.pth"
    write(trained, path) if kind != "whole network" else torch.save(trained, path)
    with pytest.raises(CheckpointError, match=cause) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert str(path) in sentence
    assert "weights_only" not in sentence, "no advice to read it unsafely"


def test_no_code_of_a_file_is_run(tmp_path: Path, trained: Network, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": trained.state_dict(), "x": Runs()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Runs()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CheckpointError, match=r"only be read by running code in it|is not a safetensors file"):
            read_checkpoint(tmp_path / name)
    assert not capsys.readouterr().out
