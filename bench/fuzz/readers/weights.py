"""Checkpoints of other people."""

from __future__ import annotations

import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from bench.fuzz.judge import Target
from bench.fuzz.mutate import TEXTS, mutate_bytes, mutate_value, odd_value
from bench.fuzz.readers.common import Json, as_json
from pipeline.training.weights import load_foreign, state_hash


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


class _Code:
    """Runs a command where it is unpickled without restriction."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os  # noqa: PLC0415  only for this attack

        return os.system, ("touch owned",)


def _weight_seeds(scratch: Path) -> Json:
    network = _network()
    state = network.state_dict()
    files = [("safetensors", safetensors.torch.save(state))]
    for value in (state, {"model": state, "epoch": 3}, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
            files.append(("pth", buffer.getvalue()))
    scratch.mkdir(parents=True, exist_ok=True)
    for suffix, content in files:
        (scratch / f"seed.{suffix}").write_bytes(content)
        load_foreign(_network(), scratch / f"seed.{suffix}")
    return {"state": state, "files": files, "hash": state_hash(network)}


def _write_weights(rng: random.Random, seeds: Json, folder: Path) -> None:
    suffix, content = rng.choice(seeds["files"]) if rng.randrange(2) else seeds["files"][0]
    what = rng.randrange(4)
    if what == 0:
        state = _odd_state(dict(seeds["state"]), rng)
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=bool(rng.randrange(2)))
        suffix, content = "pth", buffer.getvalue()
    elif what == 1 and suffix == "safetensors":
        (size,) = struct.unpack("<Q", content[:8])
        header = mutate_value(json.loads(content[8 : 8 + size]), rng)
        text = as_json(header) if rng.randrange(3) else mutate_bytes(as_json(header), rng)
        content = struct.pack("<Q", len(text)) + text + content[8 + size :]
    else:
        content = mutate_bytes(
            content, rng, (b"cos\nsystem\n", b"(X\x05\x00\x00\x00touchtR.", b"\x80\x04", b"\xff" * 8)
        )
    if rng.randrange(10) == 0:
        suffix = rng.choice(("safetensors", "pth", "pt", "bin", ""))
    (folder / f"weights.{suffix}").write_bytes(content)


def _odd_state(state: Json, rng: random.Random) -> Any:
    name = rng.choice(list(state))
    makers = (
        lambda: torch.full_like(state[name], float("nan")) if state[name].is_floating_point() else state[name],
        lambda: state[name].to(torch.complex64),
        state[name].to_sparse,
        lambda: state[name].to(torch.float8_e5m2) if state[name].is_floating_point() else state[name],
        lambda: torch.empty(state[name].shape, device="meta"),
        lambda: torch.quantize_per_tensor(state[name].float(), 0.1, 0, torch.qint8),
        lambda: state[name].expand(1000, *state[name].shape),
        lambda: state[name][None],
        _Code,
        lambda: nn.Parameter(state[name].float()),
        lambda: odd_value(rng),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    )
    value = rng.choice(makers)()
    match rng.randrange(5):
        case 0:
            return value
        case 1:
            return {rng.choice(("model", "state_dict")): value}
        case 2:
            return state | {rng.choice((5, None, *TEXTS[:16])): value}
        case _:
            return state | {name: value}


def _read_weights(folder: Path, seeds: Json) -> None:
    (path,) = (folder / "in").iterdir()
    network = _network()
    try:
        load_foreign(network, path)
    except BaseException:
        assert state_hash(network) == seeds["hash"], "a refused checkpoint changed the network"
        raise
    for value in network.state_dict().values():
        assert value.device.type == "cpu", "weights without values were let through"
        assert torch.isfinite(value).all(), "weights that are no numbers were let through"


TARGET = Target("weights", "foreign checkpoint", _weight_seeds, _write_weights, _read_weights)
