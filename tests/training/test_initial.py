"""Weights and normalisation that a network begins with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from pipeline.config import NetworkParams, Params, TeacherParams
from pipeline.data.normalisation import Normalisation, Renormalised, taking
from pipeline.errors import CheckpointError, ParamsError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.training.initial import given_teacher, initial_network, state_sha256
from pipeline.training.session import Session
from pipeline.training.teacher import make_teacher
from tests.conftest import ROOT

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHAPE = (3, 32, 32)


@pytest.fixture
def teacher(params: Params) -> TeacherParams:
    return params.teacher


def saved(path: Path, name: str, classes: int, **options: object) -> Path:
    torch.manual_seed(5)
    save_file(models.build(name, classes, **options).state_dict(), path)
    return path


def changed(block: NetworkParams, **changes: object) -> NetworkParams:
    return type(block).model_validate({**block.model_dump(), **changes})


def test_weights_of_other_classes_keep_a_fresh_classifier_and_are_named_by_their_hash(teacher, tmp_path):
    path = saved(tmp_path / "a.safetensors", "resnet8", 7)
    found = initial_network(changed(teacher, network="resnet8", initial_weights=str(path)), "teacher", 5, SHAPE)
    state = found.network.state_dict()
    assert state["fc.weight"].shape == (5, 64)
    torch.manual_seed(5)
    assert torch.equal(state["conv1.weight"], models.build("resnet8", 7).state_dict()["conv1.weight"])
    assert found.lineage == {"initial_weights": sha256_file(path)}
    assert found.normalisation is None, "nothing says what they were trained with"


def test_random_weights_have_no_lineage_and_the_normalisation_of_the_images(teacher):
    found = initial_network(teacher, "teacher", 5, SHAPE)
    assert (found.lineage, found.normalisation) == ({}, None)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:mobilenet_v3_small"])
def test_weights_of_a_library_have_its_normalisation_unless_another_is_given(name, teacher, tmp_path):
    path = saved(tmp_path / "a.safetensors", name, 4)
    block = changed(teacher, network=name, initial_weights=str(path))
    assert initial_network(block, "teacher", 5, SHAPE).normalisation == IMAGENET
    own = changed(block, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert initial_network(own, "teacher", 5, SHAPE).normalisation == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "size", "at"),
    [
        ("timm:vit_tiny_patch16_224", (64, 48), "pos_embed"),
        ("timm:swin_tiny_patch4_window7_224", (64, 64), "layers.0.blocks.0.attn.relative_position_bias_table"),
        ("torchvision:vit_b_32", (64, 64), "encoder.pos_embedding"),
    ],
)
def test_positions_of_attention_networks_are_resampled_to_the_image_size(name, size, at, teacher, tmp_path):
    path = saved(tmp_path / "a.safetensors", name, 4)
    block = changed(teacher, network=name, initial_weights=str(path))
    network = initial_network(block, "teacher", 5, (3, *size)).network.eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 5)
    native, state = load_file(path), network.state_dict()
    same = [key for key, value in native.items() if value.shape == state[key].shape]
    assert all(torch.equal(state[key], native[key]) for key in same if "index" not in key)
    assert at in state
    with pytest.raises(CheckpointError, match=r"head.*\[4, \d+\] in place of \[5, \d+\]"):
        given_teacher(changed(teacher, network=name, checkpoint=str(path)), 5, (3, *size))
    whole = given_teacher(changed(teacher, network=name, checkpoint=str(path)), 4, (3, *size))
    last, weights = list(whole.state_dict().items())[-1]
    assert torch.equal(weights, native[last])


def test_a_tag_without_its_weights_is_refused(teacher):
    with pytest.raises(ParamsError, match=r"teacher\.network timm:resnet18\.a1_in1k names the weights a1_in1k, but "):
        initial_network(changed(teacher, network="timm:resnet18.a1_in1k"), "teacher", 5, SHAPE)


def test_weights_that_cannot_be_loaded_are_named_by_their_key(teacher, tmp_path):
    path = saved(tmp_path / "a.safetensors", "resnet14", 5)
    wide = changed(teacher, network="resnet8", initial_weights=str(path))
    with pytest.raises(CheckpointError, match=rf"^params\.yaml: students\.wide\.initial_weights: {path} is not a"):
        initial_network(wide, "students.wide", 5, SHAPE)
    given = changed(teacher, network="resnet8", checkpoint=str(path))
    for block in ("teacher", "soft_labels.teachers[0]"):
        words = re.escape(f"params.yaml: {block}.checkpoint: {path} is not a")
        with pytest.raises(CheckpointError, match=words):
            given_teacher(given, 5, SHAPE, block)


def test_networks_without_pretrained_weights_are_refused(teacher):
    block = changed(teacher, network="resnet20", initial_weights="pretrained")
    with pytest.raises(CheckpointError, match=r"teacher\.initial_weights: only torchvision: and timm: names have"):
        initial_network(block, "teacher", 5, SHAPE)


_PRETRAINED = """
import sys, torch
from models import libraries
for name in sys.argv[1:]:
    try:
        state = libraries.pretrained(name)
        print(float(state["conv1.weight"].sum()))
    except libraries.NoWeightsError as error:
        print(error)
"""


def test_pretrained_weights_come_from_the_caches_of_the_libraries_or_one_sentence_says_where_to_get_them(tmp_path):
    torch.manual_seed(0)
    commit = "0" * 40
    hub = tmp_path / "hf/hub/models--timm--resnet18.a1_in1k"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text(commit)
    (hub / "snapshots" / commit).mkdir(parents=True)
    for name, path in (
        ("timm:resnet18", hub / "snapshots" / commit / "model.safetensors"),
        ("torchvision:resnet18", tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        state = models.build(name, 1000).state_dict() | {"conv1.weight": torch.full((64, 3, 7, 7), 2.0)}
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    names = ["timm:resnet18", "torchvision:resnet18", "timm:resnet18.a2_in1k"]
    environment = {"HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PRETRAINED, *names],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    timms, torchvisions, missing = done.stdout.splitlines()
    assert float(timms) == float(torchvisions) == 2.0 * 64 * 3 * 49
    assert "the weights of timm:resnet18.a2_in1k could not be downloaded (" in missing
    assert (
        "get https://huggingface.co/timm/resnet18.a2_in1k/resolve/main/model.safetensors on another machine" in missing
    )


def test_the_hash_of_weights_is_that_of_names_and_values():
    state = models.build("resnet8", 5).state_dict()
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))
    assert state_sha256(state) != state_sha256(state | {"fc.bias": state["fc.bias"] + 1})


def test_a_network_takes_images_in_another_normalisation_than_its_own():
    torch.manual_seed(0)
    network, pixels = models.build("resnet8", 5).eval(), torch.rand(2, 3, 8, 8)
    other = Normalisation((0.5, 0.5, 0.5), (0.5, 0.25, 1.0))

    def normalised(to: Normalisation) -> torch.Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in to)
        return (pixels - mean) / std

    wrapped = taking(other, network, IMAGENET)
    assert isinstance(wrapped, Renormalised)
    torch.testing.assert_close(wrapped(normalised(other)), network(normalised(IMAGENET)), rtol=1e-4, atol=1e-5)
    assert taking(IMAGENET, network, IMAGENET) is network


def test_a_teacher_is_trained_from_initial_weights_in_its_own_normalisation(tiny_run, params, tmp_path):
    path = saved(tmp_path / "a.safetensors", "resnet8", 7)
    training = params.teacher.training.model_copy(update={"epochs": 1, "batch_size": 256, "precision": "fp32"})
    block = params.teacher.model_copy(update={"network": "resnet8", "minimum_top1": 0.0, "training": training})
    block = block.model_copy(update={"initial_weights": str(path), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)})
    session = Session(torch.device("cpu"), checkpoints=tmp_path / "checkpoints")
    card = make_teacher(tiny_run, params.model_copy(update={"teacher": block}), session)
    assert card.lineage.initial_weights == sha256_file(path)
    assert (card.mean, card.std) == ([0.5] * 3, [0.2] * 3)
    assert Run(tiny_run.places).teacher == card


@pytest.fixture(scope="module")
def digits_teacher(params, tiny_run_once, tmp_path_factory):
    """A file with a teacher that knows the digits at 8 pixels, trained in the normalisation of ImageNet."""
    from pipeline.data.loader import open_images
    from pipeline.training.loop import train_classifier
    from tests.conftest import places_in

    run = Run(places_in(tiny_run_once))
    train, val = (open_images(run.places.data, name, torch.device("cpu"), IMAGENET) for name in ("train", "val"))
    training = params.teacher.training.model_copy(update={"epochs": 3, "batch_size": 64, "precision": "fp32"})
    torch.manual_seed(0)
    network = models.build("resnet8", 10)
    *_, last = train_classifier(network, train, val, training, 0, Session(torch.device("cpu")))
    assert last.val_top1 > 0.5
    path = tmp_path_factory.mktemp("digits") / "teacher.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return path


@pytest.fixture
def said():
    return []


@pytest.fixture
def taken(tiny_run, params, digits_teacher, tmp_path, said):
    def make(**changes):
        block = changed(params.teacher, network="resnet8", checkpoint=str(digits_teacher), **changes)
        session = Session(torch.device("cpu"), checkpoints=tmp_path / "checkpoints", tell=said.append)
        return make_teacher(tiny_run, params.model_copy(update={"teacher": block}), session)

    return make


def test_the_normalisation_that_fits_a_checkpoint_is_found_and_said(taken, said):
    card = taken()
    (sentence,) = said
    assert "teacher.safetensors fits best: validation top-1 " in sentence
    assert "CIFAR-100 0." in sentence
    assert float(sentence.partition("validation top-1 ")[2][:6]) == pytest.approx(card.val_top1, abs=1e-4)


def test_a_normalisation_in_which_a_checkpoint_is_much_worse_is_refused(taken):
    with pytest.raises(CheckpointError, match=r"has validation top-1 0\.\d+ with teacher\.mean and .*, but 0"):
        taken(mean=(0.9, 0.9, 0.9), std=(0.05, 0.05, 0.05))


def test_a_given_normalisation_that_fits_is_kept(taken):
    assert taken(mean=IMAGENET.mean, std=IMAGENET.std).mean == list(IMAGENET.mean)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.1, 0.1, 0.1)}, "mean and std belong together"),
        ({"checkpoint_entry": "model"}, "checkpoint_entry names a part of a file, but no file"),
        ({"checkpoint": "a.pth", "initial_weights": "b.pth"}, "set one of them to null"),
        ({"checkpoint_entry": "model", "initial_weights": "pretrained"}, "no file of weights is given"),
        ({"checkpoint": "pretrained"}, "set initial_weights to pretrained"),
        ({"mean": (0.5,) * 3, "std": (1e-30,) * 3}, "greater than or equal to 0.001"),
    ],
)
def test_contradictions_in_params_are_refused(teacher, changes, words):
    with pytest.raises(ValueError, match=words):
        changed(teacher, **changes)


def test_a_normalisation_has_a_number_for_each_channel(params):
    values = params.model_dump()
    values["teacher"] |= {"mean": [0.5], "std": [0.5]}
    with pytest.raises(ValueError, match=r"teacher\.mean has 1 numbers, but data\.channels is 3; give one for each"):
        Params.model_validate(values)
    values["data"]["channels"] = 1
    assert Params.model_validate(values).teacher.mean == [0.5]


def test_weights_for_rgb_images_are_summed_for_grey_ones_and_a_whole_teacher_of_them_is_refused(teacher, tmp_path):
    path = saved(tmp_path / "a.safetensors", "timm:resnet18", 5)
    block = changed(teacher, network="timm:resnet18", initial_weights=str(path))
    rgb, grey = (initial_network(block, "teacher", 5, (channels, 32, 32)) for channels in (3, 1))
    image = torch.rand(2, 1, 32, 32)
    logits = rgb.network.eval()(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(grey.network.eval()(image), logits, rtol=1e-4, atol=1e-5)
    assert grey.normalisation.mean == pytest.approx((0.449,), abs=1e-6)
    with pytest.raises(CheckpointError, match=r"take 3 channels, but the images have 1; set data\.channels"):
        given_teacher(changed(block, initial_weights=None, checkpoint=str(path)), 5, (1, 32, 32))


def test_a_backbone_without_classifier_is_a_start_and_whole_numbers_are_no_weights(teacher, tmp_path):
    path = tmp_path / "a.safetensors"
    state = models.build("resnet8", 7).state_dict()
    save_file({name: value for name, value in state.items() if not name.startswith("fc")}, path)
    block = changed(teacher, network="resnet8", initial_weights=str(path))
    network = initial_network(block, "teacher", 5, SHAPE).network
    assert torch.equal(network.conv1.weight, state["conv1.weight"])
    save_file({name: value for name, value in state.items() if not name.startswith("bn1")}, path)
    with pytest.raises(CheckpointError, match=r"lacks 4 tensors such as bn1\.weight"):
        initial_network(block, "teacher", 5, SHAPE)
    save_file({name: value.to(torch.int8) for name, value in state.items()}, path)
    with pytest.raises(CheckpointError, match=r"has conv1\.weight as int8 numbers, not floats"):
        initial_network(block, "teacher", 5, SHAPE)


def test_resampled_positions_and_grey_images_go_together(teacher, tmp_path):
    path = saved(tmp_path / "a.safetensors", "timm:vit_tiny_patch16_224", 4)
    block = changed(teacher, network="timm:vit_tiny_patch16_224", initial_weights=str(path))
    network = initial_network(block, "teacher", 5, (1, 32, 32)).network.eval()
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(("size", "fitting"), [((40, 60), r"\[32, 48\]"), ((31, 32), r"\[16, 32\]")])
def test_images_whose_border_a_network_would_not_see_are_refused(size, fitting, teacher):
    block = changed(teacher, network="timm:vit_tiny_patch16_224")
    with pytest.raises(ParamsError, match=rf"sees patches of 16 x 16 pixels, .*set data\.image_size to {fitting}"):
        initial_network(block, "teacher", 5, (3, *size))


def test_an_unknown_tag_is_answered_with_the_tags_that_there_are(teacher):
    with pytest.raises(ParamsError, match=r"names weights that timm does not have, but a1_in1k, "):
        initial_network(changed(teacher, network="timm:resnet18.nope"), "teacher", 5, SHAPE)


def test_a_rate_that_a_network_does_not_have_is_named(teacher):
    training = teacher.training.model_copy(update={"dropout": 0.1, "drop_path": 0.1})
    block = teacher.model_copy(update={"network": "torchvision:vit_b_16", "training": training})
    with pytest.raises(ParamsError, match=r"torchvision:vit_b_16 has no drop_path; set it to 0"):
        initial_network(block, "teacher", 5, SHAPE)
