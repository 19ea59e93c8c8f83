"""Stages of networks, and weights that stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import models
from pipeline.config import Params, validated
from pipeline.errors import ParamsError
from pipeline.training.optimizer import check_trainable
from pipeline.training.stages import classifier, frozen, stages, train_mode
from tests.training.helpers import network, run, settings


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet20", 5, "conv1.weight", "fc.weight"),
        ("MobileNetV2", 4, "conv1.0.weight", "classifier.0.weight"),
        ("vgg8", 6, "block0.0.weight", "classifier.weight"),
        ("ShuffleV2", 6, "conv1.weight", "linear.weight"),
        ("torchvision:resnet18", 6, "conv1.weight", "fc.weight"),
        ("torchvision:mobilenet_v3_small", 14, "features.0.0.weight", "classifier.3.weight"),
        ("torchvision:vit_b_16", 14, "class_token", "heads.head.weight"),
        ("timm:resnet18", 6, "conv1.weight", "fc.weight"),
        ("timm:efficientnet_lite0", 9, "conv_stem.weight", "classifier.weight"),
        ("timm:convnext_atto", 6, "stem.0.weight", "head.fc.weight"),
    ],
)
def test_stages_hold_every_parameter_once_from_the_stem_to_the_classifier(name, count, first, last):
    with torch.device("meta"):
        built = models.build(name, 4)
    found = stages(built)
    assert len(found) == count
    assert first in found[0]
    assert last in found[-1]
    assert sorted(name for names in found for name in names) == sorted(dict(built.named_parameters()))
    [part] = classifier(built)
    assert part.weight is built.get_parameter(last)


def test_a_network_with_two_classifiers_has_both():
    assert len(classifier(models.build("timm:deit_tiny_distilled_patch16_224", 4))) == 2


def changed(trained: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("freeze", "still"), [(0, ()), (1, ("0.", "1.")), ("backbone", ("0.", "1."))])
def test_frozen_weights_and_batch_statistics_stay_and_the_rest_learns(params, freeze, still):
    trained = network(1)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    run(params, trained, settings(params, freeze=freeze, weight_decay=0.1, ema_decay=0.5))
    assert changed(trained, before) == {name for name in before if not name.startswith(still or "never")}
    assert all(value.requires_grad for value in trained.parameters()), "only while it is trained"


def test_frozen_parts_are_in_eval_mode_and_the_rest_in_training_mode():
    trained = models.build("resnet8", 4)
    with frozen(trained, 2):
        train_mode(trained)
        modes = {name: part.training for name, part in trained.named_modules()}
    assert not any(modes[name] for name in ("conv1", "bn1", "layer1", "layer1.0.bn1"))
    assert all(modes[name] for name in ("", "layer2", "layer2.0.bn1", "layer3", "fc"))


@pytest.mark.parametrize("freeze", [5, 9])
def test_more_stages_than_there_are_before_the_classifier_are_refused(params, freeze):
    words = (
        rf"^params\.yaml: distill\.training\.freeze is {freeze}, but ResNet has 5 stages, the last with the "
        "classifier; set it to at most 4, or to backbone$"
    )
    with pytest.raises(ParamsError, match=words):
        check_trainable(models.build("resnet8", 4), settings(params, freeze=freeze), "distill.training", (3, 8, 8))
    check_trainable(models.build("resnet8", 4), settings(params, freeze=4), "distill.training", (3, 8, 8))


@pytest.mark.parametrize(("freeze", "words"), [(-1, "it is -1; give a number"), ("bakbone", "'backbone'")])
def test_what_is_no_number_of_stages_is_refused(params, freeze, words):
    values = params.model_dump()
    values["distill"]["training"]["freeze"] = freeze
    with pytest.raises(ParamsError, match=rf"^params\.yaml: distill\.training\.freeze.*{words}"):
        validated(Params, values, "params.yaml")


def test_weights_that_are_drawn_at_random_are_not_frozen(params):
    values = params.model_dump()
    for block in ("teacher", "distill"):
        chosen = values[block] | {"training": values[block]["training"] | {"freeze": "backbone"}}
        with pytest.raises(ValueError, match=r"training\.freeze is backbone, but these weights are drawn at random"):
            Params.model_validate(values | {block: chosen})
    Params.model_validate(values | {"distill": chosen | {"initial_weights": "checkpoints/student.safetensors"}})
