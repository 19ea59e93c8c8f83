"""A piece of work by itself; whole pools are in test_schedule.py."""

from __future__ import annotations

import pytest
import torch

from pipeline.ablation.jobs import Work
from pipeline.errors import DataError


def raising(error: Exception):
    def task(on_epoch):
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DataError("a class is empty; fill it"), "a class is empty; fill it"),
        (torch.OutOfMemoryError(), "the device has not enough memory; use fewer jobs or a smaller batch_size"),
    ],
)
def test_work_that_cannot_be_done_says_why_in_one_sentence(monkeypatch, error, sentence):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    assert Work(raising(error), torch.get_num_threads(), None)() == sentence


def test_a_defect_is_not_taken_for_one(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    with pytest.raises(ZeroDivisionError):
        Work(raising(ZeroDivisionError()), torch.get_num_threads(), None)()


def test_work_that_is_queued_again_is_the_same(monkeypatch):
    work = Work(raising(DataError("x")), 1, None)
    assert work.checkpoint().function is work
