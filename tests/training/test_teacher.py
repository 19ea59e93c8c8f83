"""The teacher of the pipeline."""

from __future__ import annotations

import pytest
import torch

from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import write_store
from pipeline.training.teacher import make_teacher


def test_a_teacher_that_could_not_be_written_keeps_its_checkpoint(params, tmp_path, monkeypatch):
    source = open_source(params.data)
    write_store(tmp_path / "data", source, split(source, params.data), params.data)
    training = params.teacher.training.model_copy(update={"epochs": 1, "batch_size": 256})
    chosen = params.teacher.model_copy(update={"network": "resnet8", "minimum_top1": 0.0, "training": training})
    settings = params.model_copy(update={"teacher": chosen})

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("pipeline.training.teacher.write_network", full)
    with pytest.raises(OSError, match="no space left"):
        make_teacher(tmp_path / "teacher", tmp_path / "data", settings, torch.device("cpu"), tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").glob("teacher-*/epoch.safetensors"))
