"""No step makes the host wait for a GPU, shown without one: fake tensors have a device and a shape, but no memory.

A step that asks for a value fails by itself, as does one that computes with tensors of two devices.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import models
from pipeline.data.loader import Batch, Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.data.views import numbered_views
from pipeline.distillation.losses import LOSSES, make_loss
from pipeline.distillation.mixing import MIXES
from pipeline.distillation.objective import Companion, DistillationObjective, DistillationStep
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.temperatures import certainty_temperatures, group_temperatures
from tests.conftest import augmented, loss_params

GPU = torch.device("cuda", 0)
COUNT, BATCH, SIZE, CLASSES = 64, 16, 16, 10


class NoBlockingCopies(TorchDispatchMode):
    """Refuses copies from one device to another for which the host would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        copies = {torch.ops.aten._to_copy: (result, args[0]), torch.ops.aten.copy_: args[:2]}
        to, source = copies.get(func.overloadpacket, (None, None))
        if to is not None and to.device.type != source.device.type:
            blocking = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            assert not blocking, f"a copy of {tuple(source.shape)} from {source.device} to {to.device}"
        return result


@pytest.fixture
def gpu():
    with FakeTensorMode():
        yield


def images_on_gpu(views):
    pixels = ResidentPixels(np.zeros((COUNT, SIZE, SIZE, 3), np.uint8), GPU, views.padding)
    labels = torch.zeros(COUNT, dtype=torch.int64, device=GPU)
    return Images(pixels, labels, Normalisation([0.5] * 3, [0.25] * 3), views)


def step_on_gpu(**changes):
    labels, index = torch.zeros(2, BATCH, dtype=torch.int64, device=GPU)
    images = torch.zeros(BATCH, 3, SIZE, SIZE, device=GPU)
    return DistillationStep(Batch(images, labels, index), Companion(images[:6], index[:6], 0.7, labels[:6]), **changes)


def test_a_blocking_copy_and_a_look_at_a_value_are_found(gpu):
    with NoBlockingCopies():
        torch.zeros(3).to(GPU, non_blocking=True)
        with pytest.raises(AssertionError, match=r"a copy of \(3,\) from cpu to cuda:0"):
            torch.tensor([2.0, 4.0, 6.0], device=GPU)
        with pytest.raises(AssertionError, match="a copy of"):
            torch.zeros(3, device=GPU).copy_(torch.zeros(3))
        with pytest.raises(RuntimeError, match="device"):
            torch.zeros(3, device=GPU) + torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            torch.zeros(3, device=GPU).sum().item()


@pytest.mark.parametrize(
    "views",
    [
        augmented(2, horizontal_flip=True),
        augmented(2, vertical_flip=True, quarter_turns=True, erasing=0.5),
        augmented(crop={"name": "resized", "scale": (0.5, 1.0), "ratio": (0.75, 1.333)}, quarter_turns=True),
    ],
)
def test_views_are_made_without_waiting(gpu, views):
    images = images_on_gpu(views)
    index = torch.zeros(BATCH, dtype=torch.int64, device=GPU)
    with NoBlockingCopies():
        numbered = (numbered_views(images, [(index, index)], 1, mixed=mixed) for mixed in (False, True))
        for drawn in (*images.views([index, index], torch.Generator()), *(view.images for [view] in numbered)):
            assert drawn.device == GPU
            assert drawn.shape == (BATCH, 3, SIZE, SIZE)


@pytest.mark.parametrize("mix", MIXES)
def test_images_are_mixed_without_waiting(mix):
    drawn = MIXES[mix](BATCH, SIZE, SIZE, torch.Generator().manual_seed(0))
    with FakeTensorMode():
        images, partner = torch.zeros(BATCH, 3, SIZE, SIZE, device=GPU), torch.zeros(BATCH, dtype=torch.int64).to(GPU)
        with NoBlockingCopies():
            assert drawn.apply(images, images, partner).device == GPU


@pytest.fixture(params=["groups", "continuous"])
def temperatures(request, params):
    """Parameters of each mode, continuous with the student's own, and the temperatures, made before any step."""
    student = {"groups": "same", "continuous": "own"}[request.param]
    chosen = params.distill.temperatures.model_copy(update={"mode": request.param, "student": student})
    if request.param == "groups":
        return chosen, group_temperatures(EnergyGroups(torch.zeros(COUNT, dtype=torch.int8), -9.0, -3.0), 4.0, chosen)
    return chosen, certainty_temperatures(torch.ones(COUNT), 4.0, chosen)


@pytest.mark.parametrize("assignment", ["sample", "view"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_objective_is_computed_without_waiting(temperatures, gpu, params, loss, assignment):
    mode, found = temperatures
    changes = {"loss": loss_params(loss), "assignment": assignment, "temperatures": mode, "sample_weight": "entropy"}
    chosen = params.distill.model_copy(update=changes)
    heda = params.heda.model_copy(update={"mixed_label_weight": 0.5})
    with torch.device(GPU):
        student, teacher = (models.build("resnet8", CLASSES) for _ in range(2))
        base = make_loss(chosen, student, teacher, (3, SIZE, SIZE))
    on_gpu = replace(found, stored=torch.ones(COUNT, device=GPU))
    objective = DistillationObjective(teacher, base, on_gpu, chosen, heda)
    strong = torch.zeros(BATCH, 3, SIZE, SIZE, device=GPU) if base.strong_views else None
    with base.reading_features(), NoBlockingCopies():
        value = objective(student, step_on_gpu(strong=strong), 0)
    assert value.device == GPU
    assert value.shape == ()
