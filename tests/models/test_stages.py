"""The stages of the networks against the feature shapes of the reference (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import models
from pipeline.distillation.features import FeatureTap

NETWORKS = json.loads((Path(__file__).parents[1] / "golden" / "networks.json").read_text())


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_stage_outputs_have_the_shapes_of_the_reference(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name, 100).eval()
    with FeatureTap(network, models.stage_names(network)) as tap, torch.no_grad():
        network(torch.zeros(2, 3, 32, 32, device="meta"))
        shapes = [list(feature.shape) for feature in tap.features()]
    # the first in the reference's list, the stem or VGG's first block, is one that its feature losses leave out
    assert shapes == NETWORKS[name]["features"][1:]


def test_every_network_has_its_reference() -> None:
    assert set(NETWORKS) == set(models.available())


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "timm:convnext_atto"])
def test_nothing_is_known_of_the_libraries_networks(name: str) -> None:
    with torch.device("meta"):
        assert models.stage_names(models.build(name, 10)) == ()
