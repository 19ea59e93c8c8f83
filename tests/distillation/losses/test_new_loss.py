"""A base loss that the pipeline has never seen: one file with its parameters and its class, and its line in LOSSES."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field

from pipeline.config import DistillParams, Loss, Params, read_yaml, validated
from pipeline.distillation.losses import LOSSES
from pipeline.errors import ParamsError
from tests.conftest import ROOT, state_hash
from tests.distillation.helpers import build, train

FILE = '''
"""Squared difference of the logits, the samples of a low temperature weighted more."""

from typing import Literal

from pipeline.config import LossParams
from pipeline.distillation.losses.base import BaseLoss, Term, warmup


class LogitErrorParams(LossParams):
    name: Literal["logit_error"]
    power: float
    warmup_epochs: float


class LogitErrorLoss(BaseLoss):
    strong_views = True

    def terms(self, compared, epoch):
        difference = (compared.student - compared.teacher).square().mean(dim=1)
        values = difference / compared.temperature**self.params.power
        return [Term(self.kd_weight * warmup(self.params.warmup_epochs, epoch), values)]
'''
BLOCK = {"name": "logit_error", "ce_weight": 0.5, "kd_weight": 2.0, "power": 1.0, "warmup_epochs": 1.0}


@pytest.fixture
def with_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parameters with a base loss that is defined in one file, groups of temperatures and HE-DA."""
    (tmp_path / "logit_error.py").write_text(FILE)
    spec = importlib.util.spec_from_file_location("logit_error", tmp_path / "logit_error.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(LOSSES, "logit_error", module.LogitErrorLoss)
    known = (Loss.__origin__ | module.LogitErrorParams, Field(discriminator="name"))
    distill = type("Distill", (DistillParams,), {"__annotations__": {"loss": Annotated[known]}})
    schema = type("WithLoss", (Params,), {"__annotations__": {"distill": distill, "students": dict[str, distill]}})

    def make(**changes: object) -> Params:
        values = read_yaml(ROOT / "params.yaml")
        values["heda"]["mix"] = "cutmix"
        values["distill"]["temperatures"]["mode"] = "groups"
        values["distill"]["loss"] = BLOCK | changes
        values["distill"]["training"] |= {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "precision": "fp32"}
        return validated(schema, values, "params.yaml")

    return make


def trained(params: Params) -> str:
    student = build("resnet8", 1)
    records = train(params, student, build("resnet14", 2))
    assert all(np.isfinite(record.train_loss) for record in records)
    return state_hash(student)


def test_a_new_loss_is_one_file_and_its_block_of_parameters(with_loss):
    chosen = with_loss()
    states = [trained(chosen), trained(chosen), trained(with_loss(power=2.0)), trained(with_loss(kd_weight=0.0))]
    assert states[0] == states[1]
    assert len(set(states)) == 3, "its parameters reach it"


@pytest.mark.parametrize("changes", [{"logit_standardization": True}, {"assignment": "view"}, {"view": "mixed"}])
def test_a_new_loss_works_with_every_other_setting(with_loss, changes):
    chosen = with_loss()
    changed = chosen.model_copy(update={"distill": chosen.distill.model_copy(update=changes)})
    assert trained(changed) != trained(chosen)


def test_the_parameters_of_a_new_loss_are_checked_like_all_others(with_loss):
    with pytest.raises(ParamsError, match=r"distill\.loss\.powr is not a known key; did you mean power\?"):
        with_loss(powr=1.0)
    with pytest.raises(ParamsError, match=r"distill\.loss\.kd_weight is -1"):
        with_loss(kd_weight=-1)
