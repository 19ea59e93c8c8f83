from __future__ import annotations

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

import models
from pipeline.errors import CheckpointError, LineageError, ParamsError
from pipeline.store.documents import NetworkCard
from pipeline.training.weights import build_network, check_runs, load_pretrained, read_network, write_network
from tests.conftest import CARD, squashed, state_hash

FACTS = CARD | {"image": squashed(32)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return models.build("resnet8", 5)


def test_weights_and_card_come_back_as_written(network, tmp_path):
    card = write_network(tmp_path / "student", network, FACTS)
    assert NetworkCard.read(tmp_path / "student/card.json") == card
    read = read_network(tmp_path / "student", card)
    assert card.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert card.macs > 1e7
    assert state_hash(read) == state_hash(network)
    assert not read.training


def test_weights_that_the_card_does_not_describe_are_refused(network, tmp_path):
    card = write_network(tmp_path / "student", network, FACTS)
    save_file(models.build("resnet8", 5).state_dict(), tmp_path / "student/weights.safetensors")
    with pytest.raises(LineageError, match="its card was written for"):
        read_network(tmp_path / "student", card)
    (tmp_path / "student/weights.safetensors").unlink()
    with pytest.raises(LineageError, match="has hash no file, but its card was written for"):
        read_network(tmp_path / "student", card)


@pytest.mark.parametrize(("role", "stage"), [("teacher", "train_teacher"), ("student", "distill")])
def test_own_weights_that_are_not_finite_are_to_be_made_anew(network, role, stage, tmp_path):
    with torch.no_grad():
        network.fc.bias[0] = torch.nan
    card = write_network(tmp_path / role, network, FACTS | {"role": role})
    with pytest.raises(CheckpointError, match=f"not finite; remove .checkpoints and run `dvc repro -f {stage}`$"):
        read_network(tmp_path / role, card)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_state_dicts_load_bare_or_wrapped(network, tmp_path, wrap, prefix):
    path = tmp_path / "teacher.pth"
    torch.save(wrap({prefix + name: value for name, value in network.state_dict().items()}), path)
    other = models.build("resnet8", 5)
    load_pretrained(other, path)
    assert state_hash(other) == state_hash(network)


def test_foreign_safetensors_load(network, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_file(network.state_dict(), path)
    other = models.build("resnet8", 5)
    load_pretrained(other, path)
    assert state_hash(other) == state_hash(network)


def test_a_checkpoint_of_the_wrong_network_is_refused_and_changes_nothing(network, tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save(models.build("resnet14", 5).state_dict(), path)
    before = state_hash(network)
    with pytest.raises(CheckpointError, match=r"teacher\.pth is not a checkpoint of this .* others such as layer"):
        load_pretrained(network, path)
    assert state_hash(network) == before


def test_a_checkpoint_of_other_classes_names_the_shapes(network, tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save(models.build("resnet8", 7).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"has fc\.weight as \[7, 64\] in place of \[5, 64\]"):
        load_pretrained(network, path)


def test_a_network_that_is_trained_further_keeps_its_own_classifier_and_takes_the_rest(network, tmp_path):
    path = tmp_path / "pretrained.pth"
    other = models.build("resnet8", 7)
    torch.save(other.state_dict(), path)
    classifier = network.fc.weight.clone()
    load_pretrained(network, path, new_classes=5)
    assert torch.equal(network.fc.weight, classifier)
    assert torch.equal(network.conv1.weight, other.conv1.weight)


def test_a_network_that_is_trained_further_refuses_other_shapes(network, tmp_path):
    path = tmp_path / "pretrained.pth"
    torch.save(models.build("resnet8x4", 7).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"has conv1\.weight as \[32, 3, 3, 3\] in place of \[16, 3, 3, 3\]"):
        load_pretrained(network, path, new_classes=5)


class Exploit:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    "content", ["pickle", "truncated", "text", "whole module", "list", "empty", "error", "numbers"]
)
def test_unreadable_or_unsafe_files_end_in_one_sentence(network, tmp_path, capsys, content):
    path = tmp_path / "teacher.pth"
    match content:
        case "pickle":
            path.write_bytes(pickle.dumps({"model": Exploit()}))
        case "truncated":
            torch.save(network.state_dict(), path)
            path.write_bytes(path.read_bytes()[:2000])
        case "text":
            path.write_text("not a checkpoint")
        case "whole module":
            torch.save(network, path)
        case "error":
            path.write_text("Repository not found")
        case "numbers":
            torch.save({1: torch.zeros(2)}, path)
        case "list":
            torch.save([1, 2], path)
        case "empty":
            torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(network, path)
    assert "\n" not in str(caught.value)
    assert "teacher.pth" in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_missing_checkpoint_is_named(network, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_pretrained(network, tmp_path / "teacher.safetensors")


def test_an_unknown_network_names_its_key():
    with pytest.raises(ParamsError, match=r"params\.yaml: distill\.network: .*resnet9"):
        build_network("resnet9", 3, "distill.network")


def test_weights_for_colour_are_refused_for_grey_images_in_one_sentence(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "colour.safetensors")
    grey = build_network("resnet8", 5, "teacher.network", (1, 32, 32))
    with pytest.raises(
        CheckpointError, match=r"colour\.safetensors take 3 channels, but the images have 1; set data\.channels to 3$"
    ):
        load_pretrained(grey, tmp_path / "colour.safetensors")


def test_a_network_of_grey_images_comes_back_as_written(tmp_path):
    image = squashed(32).model_copy(update={"channels": 1})
    network = build_network("resnet8", 5, "distill.network", (1, 32, 32))
    card = write_network(tmp_path / "student", network, FACTS | {"image": image, "mean": [0.5], "std": [0.25]})
    assert state_hash(read_network(tmp_path / "student", card)) == state_hash(network)


def test_a_network_that_takes_no_grey_images_is_named_with_its_key():
    with pytest.raises(ParamsError, match=r"params\.yaml: distill\.network: TResNet has no convolution that reads"):
        build_network("timm:tresnet_m", 5, "distill.network", (1, 32, 32))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:vit_tiny_patch16_224", r"Input height \(96\) doesn't match model \(224\)"),
        ("torchvision:vit_b_16", r"Wrong image height! Expected 224 but got 96"),
        ("timm:swin_tiny_patch4_window7_224", r"Input height \(96\) doesn't match model \(224\)"),
    ],
)
def test_a_network_of_one_image_size_is_refused_with_its_own_words(name, words):
    with torch.device("meta"):
        network = models.build(name, 5)
    network = network.to_empty(device="cpu")
    with pytest.raises(ParamsError) as caught:
        check_runs(network, "teacher.network", 5, (3, 96, 72))
    start = r"params\.yaml: teacher\.network cannot take images of 96 x 72 pixels"
    assert re.fullmatch(rf"{start} \({words}.*\); change it or data\.image_size", str(caught.value))
