"""Names of networks: this package's, torchvision's and timm's."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import models

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name", ["torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050", "timm:mobilenetv3_small_050.lamb_in1k"]
)
def test_library_networks_have_the_wanted_number_of_classes(name: str) -> None:
    network = models.build(name, 7).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize(("name", "size"), [("torchvision:googlenet", 64), ("torchvision:inception_v3", 75)])
def test_networks_with_auxiliary_heads_return_only_logits_in_training_mode(name: str, size: int) -> None:
    with torch.device("meta"):
        network = models.build(name, 7).train()
    logits = network(torch.zeros(2, 3, size, size, device="meta"))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "closest", "listing"),
    [
        ("resnet21", "resnet20", "python -m models"),
        ("resnet18", "ResNet18", "python -m models"),
        ("MOBILENETV2", "MobileNetV2", "python -m models"),
        ("torchvision:resnet19", "torchvision:resnet18", "list_models"),
        ("torchvision:fcn_resnet50", "torchvision:", "list_models"),
        ("timm:mobilenetv3_smal_050", "timm:mobilenetv3_small_050", "timm.list_models()"),
        ("timm:resnet18.no_such_tag", "a1_in1k", "timm.list_pretrained("),
    ],
)
def test_unknown_name_is_one_sentence_with_the_closest_names_and_how_to_list_them(
    name: str, closest: str, listing: str
) -> None:
    with pytest.raises(models.UnknownNetworkError) as caught:
        models.build(name, 10)
    message = str(caught.value)
    assert name in message
    assert closest in message.removeprefix(f"There is no network {name}")
    assert listing in message
    assert "\n" not in message
    assert message.endswith(".")
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "name", ["", "???", "nowhere:resnet20", "timm:", "torchvision:", "timm:hf-hub:someone/resnet20"]
)
def test_a_name_far_from_all_others_is_unknown_and_nothing_is_fetched(name: str) -> None:
    with pytest.raises(models.UnknownNetworkError, match="There is no network"):
        models.build(name, 10)


@pytest.mark.parametrize("name", ["resnet20", "torchvision:resnet18", "timm:resnet18"])
def test_no_class_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 1 class"):
        models.build(name, 0)


def top_packages(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_import_torch_only_and_other_libraries_only_when_asked(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert top_packages(tree.body) <= {"torch", "models", *sys.stdlib_module_names}
    assert top_packages(ast.walk(tree)) <= {"torch", "models", "torchvision", "timm", *sys.stdlib_module_names}
