"""Several processes against one: the same numbers, and every image counted once."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.compute.distributed import ALONE, World, join
from pipeline.compute.sync_batch_norm import synchronised_batch_norm
from pipeline.config import Params
from pipeline.data.loader import Batch, shares
from pipeline.errors import TrainingError
from pipeline.training import fastest
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.inference import predict
from pipeline.training.loop import train_classifier
from pipeline.training.session import Session
from tests.conftest import state_hash
from tests.distillation.helpers import CPU, build, images, settings, train
from tests.training.helpers import cross_entropy, network, run
from tests.training.helpers import settings as training_settings

Work = Callable[..., Any]


def in_processes(size: int, folder: Path, work: Work, *arguments: Any) -> list[Any]:
    """The value that ``work(world, *arguments)`` returns in each of ``size`` processes, JSON-like."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # imported once for all of them; the optimizer imports torch._dynamo
    multiprocessing.set_forkserver_preload(["tests.distillation.helpers", "torch._dynamo"])
    torch.multiprocessing.start_processes(
        _process, (size, port, folder, work, arguments), nprocs=size, start_method="forkserver"
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def _process(rank: int, size: int, port: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    with join(CPU) as world:
        (folder / f"{rank}.json").write_text(json.dumps(work(world, *arguments)))


@given(st.integers(0, 500), st.integers(1, 9))
def test_shares_are_whole_even_and_weighted_to_the_mean_of_all(count: int, size: int) -> None:
    worlds = [World(rank, size) for rank in range(size)]
    parts = [list(range(count))[world.share(count)] for world in worlds]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if count >= size:
        means = [
            world.weight(len(part), count) * sum(part) / len(part) for world, part in zip(worlds, parts, strict=True)
        ]
        assert sum(means) / size == pytest.approx(sum(range(count)) / count)


def test_a_batch_smaller_than_the_processes_is_refused() -> None:
    with pytest.raises(TrainingError, match="a batch size of 2 cannot be divided among 3 processes"):
        shares([torch.arange(5), torch.arange(2)], World(0, 3))


def _distilled(world: World, params: Params, folder: Path | None = None) -> dict[str, Any]:
    student, checkpoint = build("resnet8", 1), None if folder is None else Checkpoint(folder)
    records = train(params, student, build("resnet14", 2), checkpoint, world=world)
    return {
        "precision": [record.precision for record in records],
        "losses": [record.train_loss for record in records],
        "val_top1": [record.val_top1 for record in records],
        "state": state_hash(student),
        "weight": sum(float(parameter.detach().double().abs().sum()) for parameter in student.parameters()),
        "running_mean": float(student.bn1.running_mean.double().sum()),
        "batch_norm": type(student.bn1).__name__,
    }


def _settings(params: Params, mix: str, label_weight: float, batch_size: int, **changes: Any) -> Params:
    chosen = settings(params, **changes)
    training = chosen.distill.training.model_copy(update={"precision": "fp32", "batch_size": batch_size})
    return chosen.model_copy(
        update={
            "distill": chosen.distill.model_copy(update={"training": training}),
            "heda": chosen.heda.model_copy(update={"mix": mix, "mixed_label_weight": label_weight}),
        }
    )


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("size", "batch_size", "mix", "label_weight", "loss"),
    [
        (2, 16, "cutmix", 0.0, "kd"),
        (2, 15, "mixup", 0.3, "dkd"),  # 8 and 7 images, 3 and 3 mixed ones
        (3, 16, "cutmix", 0.3, "reviewkd"),  # 5, 5 and 6 images, 2 mixed ones each
    ],
)
def test_processes_that_share_the_batch_train_as_one_does(
    params: Params, tmp_path: Path, size: int, batch_size: int, mix: str, label_weight: float, loss: str
) -> None:
    chosen = _settings(params, mix, label_weight, batch_size, loss=loss)
    alone = _distilled(ALONE, chosen)
    found = in_processes(size, tmp_path, _distilled, chosen)
    assert all(one == found[0] for one in found), "all processes end in the same weights and records"
    assert found[0]["losses"] == pytest.approx(alone["losses"], abs=1e-3)
    assert found[0]["val_top1"] == pytest.approx(alone["val_top1"], abs=0.07)
    assert found[0]["weight"] == pytest.approx(alone["weight"], rel=1e-4)
    assert found[0]["running_mean"] == pytest.approx(alone["running_mean"], rel=1e-3, abs=1e-3)
    assert found[0]["batch_norm"] == "BatchNorm2d"


@pytest.mark.e2e
def test_processes_choose_one_precision_and_keep_the_same_average_of_the_best_epoch(
    params: Params, tmp_path: Path
) -> None:
    chosen = _settings(params, "cutmix", 0.0, 16, loss="reviewkd")
    changes = {"precision": "auto", "ema_decay": 0.9, "keep": "best", "optimizer": "adamw", "clip_grad_norm": 1.0}
    training = chosen.distill.training.model_copy(update=changes | {"class_balance": "weights"})
    chosen = chosen.model_copy(update={"distill": chosen.distill.model_copy(update={"training": training})})
    (tmp_path / "checkpoint").mkdir()
    found = in_processes(2, tmp_path, _distilled, chosen, tmp_path / "checkpoint")
    assert found[0] == found[1]
    assert len(set(found[0]["precision"])) == 1


def _choosing(world: World, params: Params, gains: list[float], able: list[bool]) -> list[bool]:
    """Whether each epoch was compiled, where a compiled step takes another share of a step in each process."""
    clock, gain = 0.0, 1.0

    @contextmanager
    def compiled(*networks: nn.Module) -> Iterator[None]:
        nonlocal gain
        gain = gains[world.rank]
        yield
        gain = 1.0

    def objective(network: nn.Module, batch: Batch, epoch: int) -> torch.Tensor:
        nonlocal clock
        clock += gain
        return cross_entropy(network, batch, epoch)

    changes = {"compiled": compiled, "_now": lambda device: clock, "_LONG": 0.0}
    with patch.multiple(fastest, can_compile=lambda device: able[world.rank], **changes):
        training = training_settings(params, compile="auto")
        records = run(params, network(1), training, session=Session(CPU, world), objective=objective)
    return [record.compiled for record in records]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("gains", "able", "chosen"),
    [([0.5, 1.0], [True, True], True), ([0.5, 1.5], [True, True], False), ([0.5, 0.5], [True, False], False)],
    ids=["faster on average", "slower on average", "a compiler in one"],
)
def test_processes_compile_all_or_none(
    params: Params, tmp_path: Path, gains: list[float], able: list[bool], chosen: bool
) -> None:
    assert in_processes(2, tmp_path, _choosing, params, gains, able) == [[chosen] * 4] * 2


def _counted(world: World) -> list[list[int]]:
    network = build("resnet8", 3)
    # each count of images leaves another remainder
    return [predict(network, images(count), world).predicted.tolist() for count in (1, 2, 16, 33)]


@pytest.mark.e2e
def test_each_image_is_predicted_once_and_in_order(tmp_path: Path) -> None:
    assert in_processes(2, tmp_path, _counted) == [_counted(ALONE)] * 2


def _batch_norm(world: World) -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    whole = torch.randn(7, 3, 5, 5) * 3 + 20
    part = whole[world.share(7)].requires_grad_()
    with synchronised_batch_norm(network, world):
        out = network(part)
        out.square().sum().backward()
    gradient = world.total(network[0].weight.grad)
    network.eval()
    return {
        "out": world.gather(out.detach()).flatten().tolist(),
        "input": world.gather(part.grad).flatten().tolist(),
        "weight": gradient.flatten().tolist(),
        "mean": network[1].running_mean.tolist(),
        "var": network[1].running_var.tolist(),
        "eval": network(whole[:1]).flatten().tolist(),
    }


@pytest.mark.e2e
def test_batch_statistics_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    alone = _batch_norm(ALONE)
    for one in in_processes(2, tmp_path, _batch_norm):
        for name, values in alone.items():
            assert one[name] == pytest.approx(values, rel=1e-4, abs=1e-4), name


def test_batch_norms_that_cannot_be_synchronised_are_named() -> None:
    with (
        pytest.raises(TrainingError, match=r"Sequential has BatchNorm1d, whose statistics .* set launcher\.processes"),
        synchronised_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), World(0, 2)),
    ):
        pass


def _diverges(world: World, params: Params) -> str:
    changes = {"learning_rate": 1e30, "warmup_epochs": 0.0, "batch_size": 8, "precision": "fp32"}
    training = params.teacher.training.model_copy(update=changes)
    try:
        list(train_classifier(build("resnet8", 1), images(32), images(4), training, 0, Session(CPU, world)))
    except TrainingError as error:
        return str(error)
    return "no error"


@pytest.mark.e2e
def test_a_loss_that_is_not_finite_names_the_samples_of_the_whole_batch(params: Params, tmp_path: Path) -> None:
    expected = _diverges(ALONE, params)
    assert "the loss was not finite at epoch 0 step" in expected
    assert in_processes(2, tmp_path, _diverges, params) == [expected] * 2
