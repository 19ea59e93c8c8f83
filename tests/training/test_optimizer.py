"""Optimizers, groups of parameters, clipping, averaged weights, and the epoch whose weights are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import models
from pipeline.errors import ParamsError, SpaceError
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.optimizer import Update, check_trainable, make_optimizer
from pipeline.training.predictions import Predictions
from pipeline.training.session import Session
from tests.conftest import state_hash
from tests.training.helpers import CPU, STEPS, Killed, killed_after, network, run, settings


def optimizer_of(trained: nn.Module, params, kept: nn.Module | None = None, **changes) -> torch.optim.Optimizer:
    return make_optimizer(trained, kept or trained, settings(params, **changes))


def named_groups(trained: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """The group of each parameter, by its name."""
    names = {id(value): name for name, value in trained.named_parameters()}
    return {names[id(value)]: group for group in optimizer.param_groups for value in group["params"]}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_all_parameters_are_one_group_of_a_fused_optimizer(params, name, kind):
    trained = network(0)
    [group] = (optimizer := optimizer_of(trained, params, optimizer=name)).param_groups
    assert type(optimizer) is kind
    assert [id(value) for value in group["params"]] == [id(value) for value in trained.parameters()]
    assert (group["fused"], group["weight_decay"]) == (True, 5e-4)
    assert not group.get("nesterov")
    assert group.get("momentum", 0.9) == 0.9


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v3_small", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_norms_biases_and_what_a_network_exempts_do_not_decay_if_that_is_asked_for(params, name, layer_decay):
    trained = models.build(name, 4)
    exempt = trained.no_weight_decay() if hasattr(trained, "no_weight_decay") else set()
    for decayed in (True, False):
        optimizer = optimizer_of(trained, params, decay_norms_and_biases=decayed, layer_decay=layer_decay)
        groups = named_groups(trained, optimizer)
        assert set(groups) == set(dict(trained.named_parameters()))
        for parameter, value in trained.named_parameters():
            decays = decayed or (value.ndim > 1 and parameter not in exempt)
            assert groups[parameter]["weight_decay"] == (5e-4 if decays else 0), parameter


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("resnet20", {"conv1.weight": 4, "bn1.bias": 4, "layer1.0.conv1.weight": 3, "layer3.2.conv2.weight": 1}),
        ("torchvision:resnet18", {"bn1.weight": 5, "layer4.1.conv2.weight": 1}),
        ("torchvision:mobilenet_v3_small", {"features.0.0.weight": 13, "features.12.1.bias": 1}),
        ("timm:resnet18", {"conv1.weight": 9, "layer1.0.conv1.weight": 8, "layer4.1.conv2.weight": 1}),
    ],
)
def test_each_layer_learns_more_slowly_than_the_next(params, name, scales):
    trained = models.build(name, 4)
    groups = named_groups(trained, optimizer_of(trained, params, layer_decay=0.5))
    assert {parameter: groups[parameter]["lr_scale"] for parameter in scales} == {
        parameter: 0.5**layers for parameter, layers in scales.items()
    }
    assert groups[next(reversed(groups))]["lr_scale"] == 1, "the classifier"


def test_what_is_trained_beside_the_network_learns_like_its_last_layer(params):
    whole = nn.ModuleDict({"student": network(0), "loss": nn.Linear(2, 2)})
    changes = {"layer_decay": 0.5, "decay_norms_and_biases": False}
    groups = named_groups(whole, optimizer_of(whole, params, whole["student"], **changes))
    scales = {name: group["lr_scale"] for name, group in groups.items()}
    assert scales["student.0.weight"] == scales["student.1.weight"] == 0.5
    assert scales["student.5.weight"] == scales["loss.weight"] == scales["loss.bias"] == 1


def test_the_rates_of_all_layers_follow_the_schedule(params):
    trained = network(0)
    update = Update(trained, trained, settings(params, layer_decay=0.5, warmup_epochs=2.0))
    for epoch, expected in ((1.0, 0.025), (2.0, 0.05)):
        assert update.step(trained(torch.ones(2, 3, 4, 4)).sum(), 0, epoch) == pytest.approx(expected)
        rates = {group["lr"] for group in update.optimizer.param_groups}
        assert sorted(rates) == pytest.approx([0.5 * expected, expected])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamv", r"optimizer is 'adamv', which timm does not have; use adam"),
        ("SGD", r"optimizer is 'SGD', which timm does not have; use .*sgd"),
        ("?", r"optimizer is '\?', which timm does not have; use sgd or adamw"),
        ("adahessian", "optimizer adahessian needs second derivatives"),
        ("kron", "optimizer kron draws random numbers of its own"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused_with_its_key(params, name, words):
    with pytest.raises(ParamsError, match=rf"^params\.yaml: distill\.training\.{words}"):
        check_trainable(network(0), settings(params, optimizer=name), "distill.training", (3, 8, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be installed where there is a GPU")
def test_an_optimizer_that_is_not_installed_is_refused(params):
    with pytest.raises(ParamsError, match=r"optimizer bnbadamw cannot be used here \(.*\); use sgd or adamw$"):
        check_trainable(network(0), settings(params, optimizer="bnbadamw"), "distill.training", (3, 8, 8))


def test_gradients_are_clipped_by_their_norm_over_all_weights(params):
    for limit in (None, 0.01):
        trained = network(0)
        update = Update(trained, trained, settings(params, clip_grad_norm=limit))
        update.step(trained(torch.ones(2, 3, 4, 4)).square().sum(), 0, 0.0)
        norm = torch.cat([value.grad.flatten() for value in trained.parameters()]).norm()
        assert (float(norm) <= 0.0101) is (limit is not None)


def test_the_average_follows_the_weights_at_first_and_is_kept_at_the_end(params):
    trained, seen = network(1), []

    def validate(validated: nn.Module) -> Predictions:
        seen.append((validated is trained, state_hash(validated), state_hash(trained)))
        return Predictions(torch.tensor([0, 1]), torch.tensor([0, 0]))

    run(params, trained, settings(params, ema_decay=0.9), validate=validate)
    assert not any(same for same, _, _ in seen)
    assert all(averaged != raw for _, averaged, raw in seen)
    assert state_hash(trained) == seen[-1][1]
    raw = network(1)
    run(params, raw)
    assert state_hash(raw) == seen[-1][2], "the average has no part in the training"


def test_the_decay_of_the_average_rises_to_the_one_that_is_asked_for(params):
    trained = nn.Sequential(nn.Linear(1, 1, bias=False))
    update = Update(trained, trained, settings(params, ema_decay=0.6))
    values, expected = [], None
    for number in range(8):
        update.step(trained(torch.ones(1, 1)).sum(), number, 1.0)
        weight = trained[0].weight.item()
        decay = min(0.6, 1 - max(1, number) ** (-2 / 3))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        values.append((update.average[0].weight.item(), expected))
    assert [found for found, _ in values] == pytest.approx([wanted for _, wanted in values], rel=1e-5)


def accuracies(*shares: float):
    """Predictions with these accuracies, epoch by epoch."""
    epochs = iter(shares)

    def validate(validated: nn.Module) -> Predictions:
        right = round(10 * next(epochs))
        return Predictions(torch.tensor([0] * right + [1] * (10 - right)), torch.zeros(10, dtype=torch.int64))

    return validate


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_weights_of_the_best_epoch_are_kept_if_they_are_asked_for(params, tmp_path, ema_decay):
    shares, hashes = (0.2, 0.9, 0.9, 0.4), {}
    for keep in ("last", "best"):
        for epochs in range(1, 5):
            trained = network(1)
            # a rate that does not depend on the number of epochs
            chosen = settings(params, epochs=epochs, keep=keep, ema_decay=ema_decay, warmup_epochs=10.0)
            folder = tmp_path / f"{keep}{epochs}"
            folder.mkdir()
            run(params, trained, chosen, checkpoint=Checkpoint(folder), validate=accuracies(*shares))
            hashes[keep, epochs] = state_hash(trained)
    assert len({hashes["last", epochs] for epochs in range(1, 5)}) == 4
    assert [hashes["best", epochs] for epochs in range(1, 5)] == [hashes["last", kept] for kept in (1, 2, 2, 2)], (
        "the first of equals"
    )


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "adafactorbv"])
@pytest.mark.parametrize("stop_after", [7, 11])
def test_every_optimizer_goes_on_to_the_same_bytes(params, tmp_path, name, stop_after):
    everything = {"decay_norms_and_biases": False, "layer_decay": 0.8, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    chosen = settings(params, optimizer=name, learning_rate=1e-3, keep="best", **everything)
    shares, results = (0.4, 0.2, 0.6, 0.5), []

    class Diligent(Checkpoint):
        worth_saving = True

    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
        checkpoint, trained, done = Diligent(tmp_path / folder), network(1), 0
        if folder == "stopped":
            with pytest.raises(Killed):
                validate = accuracies(*shares)
                run(params, trained, chosen, checkpoint, killed_after(stop_after), validate=validate)
            trained, done = network(7), stop_after // STEPS
        records = run(params, trained, chosen, checkpoint, validate=accuracies(*shares[done:]))
        results.append((records, state_hash(trained)))
    assert results[0] == results[1]


def test_the_disk_must_hold_what_is_stored_of_each_weight(params, tmp_path, monkeypatch):
    asked = []

    def full(path, size, what):
        asked.append(size)
        raise SpaceError(what)

    monkeypatch.setattr("pipeline.training.checkpoint.require_space", full)
    for changes in ({}, {"optimizer": "adamw"}, {"optimizer": "adamw", "ema_decay": 0.9, "keep": "best"}):
        with pytest.raises(SpaceError):
            run(params, network(1), settings(params, **changes), checkpoint=Checkpoint(tmp_path))
    assert [size / asked[0] for size in asked] == [1, 1.5, 2.5]


def test_the_best_epoch_is_kept_nowhere_without_a_checkpoint(params):
    with pytest.raises(ValueError, match="the best epoch is kept in a checkpoint"):
        run(params, network(1), settings(params, keep="best"))


def test_a_study_measures_both_epochs_from_one_training(params, tmp_path):
    trained, checkpoint = network(1), Checkpoint(tmp_path)
    session = Session(CPU, keep_best=True)
    run(params, trained, checkpoint=checkpoint, session=session, validate=accuracies(0.2, 0.9, 0.5, 0.4))
    last = state_hash(trained)
    assert checkpoint.load_best(trained) == 1
    assert state_hash(trained) != last


def check_single_images(params, name: str, side: int, **changes) -> nn.Module:
    built = models.build(name, 4, shape=(3, side, side))
    check_trainable(built, settings(params, **{"batch_size": 1} | changes), "teacher.training", (3, side, side))
    return built


def test_single_images_are_refused_where_a_batch_norm_sees_one_pixel(params):
    words = (
        r"^params\.yaml: teacher\.training\.batch_size is 1, but VGG cannot be trained on single images of 8 x 8 "
        r"pixels \(Expected more than 1 value per channel .*\); set it to 2 or more, or choose a network without "
        r"BatchNorm$"
    )
    for changes in ({}, {"freeze": 1}):
        with pytest.raises(ParamsError, match=words):
            check_single_images(params, "vgg8", 8, **changes)


@pytest.mark.parametrize(
    ("name", "side", "changes"),
    [
        ("vgg8", 32, {}),
        ("vgg8", 8, {"batch_size": 2}),
        ("vgg8", 8, {"freeze": "backbone"}),  # its statistics stay
        ("resnet8", 8, {}),
        ("timm:convnext_atto", 32, {}),  # LayerNorm
    ],
)
def test_single_images_are_taken_where_they_can_be_trained_on(params, name, side, changes):
    check_single_images(params, name, side, **changes)


def test_the_check_of_single_images_changes_nothing(params):
    torch.manual_seed(0)
    built = models.build("vgg8", 4).eval()
    before, generator = state_hash(built), torch.get_rng_state()
    check_trainable(built, settings(params, batch_size=1, dropout=0.5), "teacher.training", (3, 32, 32))
    assert state_hash(built) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(part.training for part in built.modules())
    assert all(value.requires_grad for value in built.parameters())
