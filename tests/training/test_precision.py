"""The precision that is chosen by timing, and that nothing is left of the timing."""

from __future__ import annotations

import pytest

from pipeline.training import precision
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.session import Session
from tests.conftest import state_hash
from tests.distillation import helpers as distillation
from tests.training.helpers import CPU, Killed, killed_after, network, run, settings


@pytest.fixture
def prefer(monkeypatch):
    """Make timing end in a precision, whatever it finds: (precision) -> None."""

    def preferred(name: str) -> None:
        monkeypatch.setattr(precision, "has_bf16", lambda device: True)
        monkeypatch.setattr(precision, "_SECONDS", 0.0)
        monkeypatch.setattr(precision, "_GAIN", {"fp32": 0.0, "bf16": float("inf")}[name])

    return preferred


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_a_precision_by_choice_trains_as_the_same_by_name_bit_for_bit(params, prefer, chosen):
    prefer(chosen)
    results, told = [], []
    for name in ("auto", chosen):
        trained = network(1)
        session = Session(CPU, tell=told.append)
        results.append((run(params, trained, settings(params, precision=name), session=session), state_hash(trained)))
    assert results[0] == results[1]
    assert {record.precision for record in results[0][0]} == {chosen}
    [sentence] = told
    assert sentence.startswith(f"precision: {chosen}; a step takes ")


@pytest.mark.parametrize(
    "changes",
    [{"loss": "reviewkd"}, {"loss": "mlkd", "assignment": "view"}, {"view": "mixed"}],
    ids=["connectors", "strong views", "mixed"],
)
def test_timing_leaves_no_trace_in_a_distillation(params, prefer, changes):
    prefer("fp32")
    results = []
    for name in ("auto", "fp32"):
        chosen = distillation.settings(params, **changes)
        training = chosen.distill.training.model_copy(update={"precision": name})
        distill = chosen.distill.model_copy(update={"training": training})
        student = distillation.build("resnet8", 1)
        teacher = distillation.build("resnet8", 2)
        records = distillation.train(chosen.model_copy(update={"distill": distill}), student, teacher)
        results.append((records, state_hash(student)))
    assert results[0] == results[1]


def test_a_resumed_run_goes_on_in_the_precision_in_which_it_began(params, prefer, tmp_path):
    auto, told = settings(params, precision="auto"), []
    prefer("bf16")
    expected = run(params, network(1), auto)
    with pytest.raises(Killed):
        run(params, network(1), auto, Checkpoint(tmp_path), killed_after(7))
    prefer("fp32")
    assert run(params, network(1), auto, Checkpoint(tmp_path), Session(CPU, tell=told.append)) == expected
    assert {record.precision for record in expected} == {"bf16"}
    assert not told


def test_without_hardware_for_bf16_nothing_is_timed(params, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    monkeypatch.setattr(precision, "_now", None)
    told = []
    records = run(params, network(1), settings(params, precision="auto"), session=Session(CPU, tell=told.append))
    assert {record.precision for record in records} == {"fp32"}
    assert told == ["precision: fp32, because this processor does not compute in bf16"]
