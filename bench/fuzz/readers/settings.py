"""The settings that people write: params.yaml and device.yaml."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import ROOT, as_json, void
from pipeline.config import load_params
from pipeline.target_config import load_target


def _yaml_seeds(*paths: Path) -> list[tuple[bytes, Any]]:
    """Each file without its comments, which take most of a reader's time, and what it holds."""
    seeds = []
    for path in paths:
        lines = [line.partition(" #")[0].rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
        text = "\n".join(line for line in lines if line and not line.startswith("#")) + "\n"
        seeds.append((text.encode(), YAML(typ="safe", pure=True).load(text)))
    return seeds


def _write_yaml(rng: random.Random, seeds: list[tuple[bytes, Any]], folder: Path) -> None:
    text, value = rng.choice(seeds)
    if rng.randrange(2):
        text = as_json(mutate_value(value, rng))
    if rng.randrange(3) == 0 or text == seeds[0][0]:
        text = mutate_bytes(text, rng)
    (folder / "file.yaml").write_bytes(text)


PARAMS = Target(
    "params",
    "params.yaml",
    lambda _: _yaml_seeds(ROOT / "params.yaml"),
    _write_yaml,
    lambda folder, _: void(load_params(folder / "in/file.yaml")),
)
DEVICE = Target(
    "device",
    "device.yaml",
    lambda _: _yaml_seeds(*sorted((ROOT / "targets/examples").glob("[!s]*.yaml"))),
    _write_yaml,
    lambda folder, _: void(load_target(folder / "in/file.yaml")),
)
