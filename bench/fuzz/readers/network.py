"""Folders of trained networks: card and weights."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import torch

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import HASH, Json, as_json, class_names
from pipeline.store.documents import CARD
from pipeline.training.card import checkpoint_card
from pipeline.training.weights import WEIGHTS, build_network, read_network, write_network


def card_of(role: str) -> Json:
    """What write_network is given, of a network with three classes."""
    names = ("data",) if role == "teacher" else ("data", "teacher", "energy", "subset")
    settings: Json = {} if role == "teacher" else {"distill": {"loss": "kd"}, "heda": {"mix": "cutmix"}}
    return {
        "role": role,
        "network": "resnet8",
        "num_classes": 3,
        "class_names": class_names(),
        "image_size": 8,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "lineage": dict.fromkeys(names, HASH),
        **checkpoint_card(0.5),
        **settings,
    }


def _network_seeds(scratch: Path) -> list[tuple[Json, bytes]]:
    torch.manual_seed(0)
    seeds = []
    for role in ("teacher", "student"):
        card = write_network(scratch / role, build_network("resnet8", 3, role), card_of(role))
        read_network(scratch / role)
        seeds.append((card, (scratch / role / WEIGHTS).read_bytes()))
    return seeds


def _write_network(rng: random.Random, seeds: list[tuple[Json, bytes]], folder: Path) -> None:
    card, weights = rng.choice(seeds)
    if rng.randrange(4) == 0:
        if rng.randrange(2):
            at = struct.unpack("<Q", weights[:8])[0] + 8
            weights = weights[:at] + b"\xff" * 8 + weights[at + 8 :]  # no numbers
        else:
            weights = mutate_bytes(weights, rng)
        card = card | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    else:
        card = mutate_value(card, rng)
    text = as_json(card)
    (folder / CARD).write_bytes(mutate_bytes(text, rng) if rng.randrange(6) == 0 else text)
    if rng.randrange(50):
        (folder / WEIGHTS).write_bytes(weights)


def _read_network(folder: Path, seeds: Any) -> None:
    network, card = read_network(folder / "in")
    for value in network.state_dict().values():
        assert torch.isfinite(value).all(), "weights that are no numbers were let through"
    assert card["lineage"]["data"]


TARGET = Target("network", "card and weights of a network", _network_seeds, _write_network, _read_network)
