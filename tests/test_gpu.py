"""A GPU computes the same as the CPU, compiled and in bf16 too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import models
from pipeline.ablation.schedule import run_study
from pipeline.data.loader import Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.data.views import numbered_views
from pipeline.distillation.losses.dkd import dkd
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.student import ScoredImages, train_student
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.scoring import score_images
from pipeline.training.session import Session
from tests.ablation.conftest import QUICK, make_study  # noqa: F401  a fixture
from tests.conftest import augmented

GPU = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPU == "cuda" and not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]


def images_on(device: str, padding: int = 4) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    resident = ResidentPixels(pixels, torch.device(device), padding)
    labels = (torch.arange(600) % 10).to(device)
    return Images(resident, labels, Normalisation([0.5] * 3, [0.25] * 3), augmented(padding, horizontal_flip=True))


def test_images_are_normalised_alike():
    here, there = (next(images_on(device).batches(64)).images for device in ("cpu", GPU))
    torch.testing.assert_close(there.cpu(), here)


@pytest.mark.parametrize("mixed", [False, True])
def test_numbered_views_are_those_of_the_cpu(mixed):
    found = []
    for device in ("cpu", GPU):
        index = torch.arange(64, device=device)
        [drawn] = numbered_views(images_on(device), [(index, index % 5)], 2**61 + 7, mixed=mixed)
        found.append(drawn)
    here, there = found
    torch.testing.assert_close(there.images.cpu(), here.images)
    if mixed:
        assert torch.equal(there.mixture.partner.cpu(), here.mixture.partner)


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_losses_and_their_gradients_are_those_of_the_cpu(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 64, 100, generator=generator) * 4
    labels, tau = torch.arange(64), torch.tensor([2.0, 4.0, 6.0, 4.0] * 16)
    found = []
    for device in ("cpu", GPU):
        logits = student.to(device).detach().requires_grad_()
        if loss == "kd":
            values = kd(logits, teacher.to(device), tau.to(device))
        else:
            values = dkd(logits, teacher.to(device), labels.to(device), tau.to(device), 1.0, 6.0)
        values.mean().backward()
        found.append((values.detach().cpu(), logits.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_energies_are_those_of_the_cpu(tmp_path):
    torch.manual_seed(0)
    teacher = models.build("resnet8", 10)
    found = []
    for device in ("cpu", GPU):
        parts = score_images(teacher.to(device), images_on(device), 4.0, tmp_path / device)
        found.append(parts.energy())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_the_steps_of_an_epoch_make_the_host_wait_for_nothing(params):
    training = params.distill.training.model_copy(update={"epochs": 1, "batch_size": 60, "compile": "off"})
    params = params.model_copy(update={"distill": params.distill.model_copy(update={"training": training})})
    groups = EnergyGroups.fit(torch.randn(600, device=GPU), 0.2, 0.2)
    scored = ScoredImages(images_on(GPU), groups, 4.0, torch.arange(240, device=GPU))
    done = 0

    def watch() -> None:  # from the first step, which sets everything up, to the last
        nonlocal done
        done += 1
        torch.cuda.set_sync_debug_mode("error" if done < 10 else "default")

    session = Session(torch.device(GPU), on_step=watch)
    try:
        list(
            train_student(
                models.build("resnet8", 10), models.build("resnet20", 10), scored, scored.images, params, session
            )
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert done == 10


@pytest.mark.parametrize("compile_", ["off", "on"])
def test_a_study_in_bf16_learns(make_study, tmp_path, compile_):  # noqa: F811
    training = QUICK | {"epochs": 4, "precision": "bf16", "compile": compile_}
    study = make_study(
        seeds=[0],
        params={
            "device": GPU,
            "data": {"image_size": 8, "augmentation": {"crop": {"padding": 1}}},
            "teacher": {"network": "resnet8", "minimum_top1": 0.5, "training": training},
            "distill": {"training": training},
            "heda": {"mix": "none"},
        },
    )
    results = [result for _, result in run_study(study, tmp_path / "study", 1)]
    assert all(result.device.startswith(GPU) for result in results)
    assert all(result.last.top1 > 0.5 for result in results)
    assert all(result.train_loss[-1] < result.train_loss[0] for result in results)
