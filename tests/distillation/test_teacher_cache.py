"""The cache against the teacher that it stands for."""

from __future__ import annotations

import pytest
import torch

import models
from pipeline.distillation.teacher_cache import TeacherCache
from pipeline.errors import ParamsError

CPU = torch.device("cpu")
IMAGES, VIEWS, CLASSES = 40, 3, 10


class Counted(torch.nn.Module):
    """A teacher that notes how many images it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = models.build("resnet8", CLASSES)
        self.network(torch.randn(64, 3, 32, 32))  # batch norm statistics that are not all 0 and 1
        self.sizes: list[int] = []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.network(images)


@pytest.fixture
def teacher() -> Counted:
    return Counted().eval().requires_grad_(False)


def views_of(size: int) -> torch.Tensor:
    """Every view of every image: [N, V, 3, size, size]."""
    return torch.randn(IMAGES, VIEWS, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pixels() -> torch.Tensor:
    return views_of(32)


def ask(cache, pixels, index, views, others=None):
    images = pixels[index, views]
    return cache(images if others is None else torch.cat([images, others]), index, views)


# bf16 is emulated on most CPUs, so that every pixel costs
@pytest.mark.parametrize(("precision", "size"), [("fp32", 32), ("bf16", 8)])
def test_logits_are_those_of_the_teacher_bit_for_bit_and_each_is_computed_once(teacher, precision, size):
    cache, generator = TeacherCache(teacher, IMAGES, VIEWS, CPU), torch.Generator().manual_seed(2)
    pixels, seen = views_of(size), set()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for step in range(40):
            index = torch.randperm(IMAGES, generator=generator)[:16]
            views = torch.randint(VIEWS, (16,), generator=generator)
            others = torch.randn(step % 4, 3, size, size, generator=generator)
            expected = teacher.network(torch.cat([pixels[index, views], others]))
            teacher.sizes.clear()
            assert torch.equal(ask(cache, pixels, index, views, others), expected)
            keys = set(zip(index.tolist(), views.tolist(), strict=True))
            wanted = len(keys - seen) + len(others)
            seen |= keys
            assert wanted <= sum(teacher.sizes) <= min(16 + len(others), wanted + 7)
    assert len(seen) == IMAGES * VIEWS
    teacher.sizes.clear()
    ask(cache, pixels, torch.arange(16), torch.zeros(16, dtype=torch.int64))
    assert teacher.sizes == []


def test_few_new_images_are_computed_among_known_ones_because_kernels_depend_on_the_batch(teacher, pixels):
    cache, index, views = (
        TeacherCache(teacher, IMAGES, VIEWS, CPU),
        torch.arange(16),
        torch.zeros(16, dtype=torch.int64),
    )
    ask(cache, pixels, index, views)
    views[5] = 1
    assert torch.equal(ask(cache, pixels, index, views), teacher.network(pixels[index, views]))
    assert teacher.sizes == [16, 8]


def test_a_table_too_large_for_the_memory_is_refused(teacher, pixels, monkeypatch):
    needed = IMAGES * VIEWS * CLASSES * 4
    index, views = torch.arange(16), torch.zeros(16, dtype=torch.int64)
    for memory, processes, fits in ((4 * needed, 1, True), (4 * needed - 4, 1, False), (4 * needed, 2, False)):
        monkeypatch.setattr("pipeline.distillation.teacher_cache.host_memory", lambda memory=memory: memory)
        cache = TeacherCache(teacher, IMAGES, VIEWS, CPU, processes)
        if fits:
            ask(cache, pixels, index, views)
            continue
        with pytest.raises(ParamsError, match=r"0.0 GB \(40 images x 3 views x 10 classes\), more than a quarter"):
            ask(cache, pixels, index, views)
