"""The passes that are chosen by timing, on a machine whose steps take the time that a test gives them."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.training import fastest
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.session import Session
from tests.conftest import state_hash
from tests.distillation import helpers as distillation
from tests.training.helpers import CPU, STEPS, Killed, cross_entropy, killed_after, network, run, settings

AUTO = {"precision": "auto", "compile": "auto"}


class Machine:
    """A clock that goes on by the time that a step would take.

    Attributes:
        fp32, bf16: seconds of a step as it is.
        gain: share of them that a compiled step takes.
        compilation: seconds that the first compiled step takes besides.
        steps: precision of each step that was computed, and whether it was compiled.
        networks: those that were compiled.
        told: what was said.
    """

    def __init__(self) -> None:
        self.fp32, self.bf16, self.gain, self.compilation = 1.0, 1.0, 1.0, 50.0
        self.steps: list[tuple[str, bool]] = []
        self.networks: tuple[torch.nn.Module, ...] = ()
        self.told: list[str] = []
        self.clock = 0.0
        self._compiling = False

    @contextmanager
    def compiled(self, *networks):
        self.networks = networks
        self._compiling = True
        yield
        self._compiling = False

    def objective(self, network, batch, epoch):
        precision = "bf16" if torch.is_autocast_enabled("cpu") else "fp32"
        passed = getattr(self, precision)
        if self._compiling:
            known = (precision, True) in self.steps
            passed = self.gain * passed + (0.0 if known else self.compilation)
        self.clock += passed
        self.steps.append((precision, self._compiling))
        return cross_entropy(network, batch, epoch)

    def train(self, params, trained=None, **changes: Any):
        """Records of a training on this machine, which auto decides but for ``changes``."""
        options = {name: changes.pop(name) for name in ("checkpoint", "session", "frozen") if name in changes}
        options = {"session": Session(CPU, tell=self.told.append)} | options
        training = settings(params, **AUTO | changes)
        return run(params, trained or network(1), training, objective=self.objective, **options)


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(fastest, "_now", lambda device: made.clock)
    monkeypatch.setattr(fastest, "compiled", made.compiled)
    monkeypatch.setattr(fastest, "has_bf16", lambda device: True)
    monkeypatch.setattr(fastest, "can_compile", lambda device: True)
    monkeypatch.setattr(fastest, "_LONG", 0.0)
    return made


@pytest.mark.parametrize(("bf16", "chosen"), [(0.89, "bf16"), (0.91, "fp32")])
def test_bf16_is_chosen_where_it_is_a_tenth_faster(params, machine, bf16, chosen):
    machine.bf16 = bf16
    records = machine.train(params, compile="off")
    assert {record.precision for record in records} == {chosen}
    assert machine.told == [f"precision: {chosen}; a step takes 1e+03 ms in fp32 and {1000 * bf16:.0f} ms in bf16 here"]


@pytest.mark.parametrize(("gain", "choice"), [(0.89, "on"), (0.91, "off")])
def test_passes_are_compiled_where_that_is_a_tenth_faster(params, machine, gain, choice):
    machine.gain = gain
    frozen, trained = network(2), network(1)
    records = machine.train(params, trained, precision="fp32", frozen=[frozen])
    compiled = choice == "on"
    assert {record.compiled for record in records} == {compiled}
    assert machine.steps[-4 * STEPS :] == 4 * STEPS * [("fp32", compiled)]
    assert machine.networks == (trained, frozen)
    times = f"1e+03 ms as it is and {1000 * gain:.0f} ms compiled, for which 51 s were spent"
    assert machine.told == [f"compile: {choice}; a step takes {times}"]


def test_passes_are_compiled_in_the_precision_that_is_faster(params, machine):
    machine.bf16, machine.gain = 0.5, 0.5
    records = machine.train(params)
    assert {(record.precision, record.compiled) for record in records} == {("bf16", True)}
    assert ("fp32", True) not in machine.steps
    assert [sentence.partition(";")[0] for sentence in machine.told] == ["precision: bf16", "compile: on"]


def test_a_short_training_is_not_compiled_and_two_steps_show_that_it_is_short(params, machine, monkeypatch):
    monkeypatch.setattr(fastest, "_LONG", 4 * STEPS + 0.1)
    machine.gain = 0.1
    records = machine.train(params, precision="fp32")
    assert {record.compiled for record in records} == {False}
    assert machine.steps == (2 + 4 * STEPS) * [("fp32", False)]
    assert machine.told == ["compile: off; all steps take about 12 s, and compiling is tried from 12.1 s on"]


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_without_a_choice_nothing_is_timed(params, machine, monkeypatch, precision):
    for missing in ("has_bf16", "can_compile"):
        monkeypatch.setattr(fastest, missing, lambda device: False)
    records = machine.train(params, precision=precision)
    assert {(record.precision, record.compiled) for record in records} == {("fp32", False)}
    assert len(machine.steps) == 4 * STEPS
    reasons = ["compile: off, because there is no C++ compiler (g++) or no Python.h (python3-dev) here"]
    if precision == "auto":
        reasons.append("precision: fp32, because this processor does not compute in bf16")
    assert machine.told == reasons


def test_compiling_by_name_without_a_compiler_is_refused_in_one_sentence(params, machine, monkeypatch):
    monkeypatch.setattr(fastest, "can_compile", lambda device: False)
    with pytest.raises(
        ParamsError, match=r"students\.hot\.training\.compile is on, but there is no C\+\+ compiler .* set it to auto$"
    ):
        machine.train(params, compile="on")
    assert not machine.steps


def test_networks_that_cannot_be_compiled_are_trained_as_they_are(params, machine, monkeypatch):
    @contextmanager
    def failing(*networks):
        raise AssertionError("a stride is wrong\nin generated code")
        yield

    monkeypatch.setattr(fastest, "compiled", failing)
    trained, plain = network(1), network(1)
    records = machine.train(params, trained, precision="fp32")
    assert machine.told == ["compile: off, because torch.compile fails with this network (a stride is wrong)"]
    assert records == machine.train(params, plain, precision="fp32", compile="off")
    assert state_hash(trained) == state_hash(plain)


@pytest.mark.parametrize(("bf16", "gain"), [(2.0, 2.0), (0.5, 2.0), (0.5, 0.5)])
def test_a_choice_by_timing_trains_as_the_same_by_name_bit_for_bit(params, machine, bf16, gain):
    machine.bf16, machine.gain = bf16, gain
    named = {"precision": "bf16" if bf16 < 1 else "fp32", "compile": "on" if gain < 1 else "off"}
    results = []
    for changes in ({}, named):
        trained = network(1)
        results.append((machine.train(params, trained, **changes), state_hash(trained)))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "changes",
    [{"loss": "reviewkd"}, {"loss": "mlkd", "assignment": "view"}, {"view": "mixed"}],
    ids=["connectors", "strong views", "mixed"],
)
def test_timing_leaves_no_trace_in_a_distillation(params, machine, monkeypatch, changes):
    ticks = count()
    monkeypatch.setattr(fastest, "_now", lambda device: next(ticks))  # all steps take equally long
    results = []
    for choice in (AUTO, {"precision": "fp32", "compile": "off"}):
        chosen = distillation.settings(params, **changes)
        training = chosen.distill.training.model_copy(update=choice)
        distill = chosen.distill.model_copy(update={"training": training})
        student = distillation.build("resnet8", 1)
        teacher = distillation.build("resnet8", 2)
        records = distillation.train(chosen.model_copy(update={"distill": distill}), student, teacher)
        results.append((records, state_hash(student)))
    assert results[0] == results[1]


def test_a_resumed_run_goes_on_as_it_began(params, machine, tmp_path):
    machine.bf16, machine.gain = 0.5, 0.5
    expected = machine.train(params)
    with pytest.raises(Killed):
        machine.train(params, checkpoint=Checkpoint(tmp_path), session=killed_after(7))
    machine.bf16, machine.gain, machine.told = 2.0, 2.0, []
    assert machine.train(params, checkpoint=Checkpoint(tmp_path)) == expected
    assert {(record.precision, record.compiled) for record in expected} == {("bf16", True)}
    assert not machine.told


def test_a_resumed_run_goes_on_without_the_compiler_with_which_it_began(params, machine, tmp_path, monkeypatch):
    machine.gain = 0.5
    with pytest.raises(Killed):
        machine.train(params, checkpoint=Checkpoint(tmp_path), session=killed_after(7))
    monkeypatch.setattr(fastest, "can_compile", lambda device: False)
    records = machine.train(params, checkpoint=Checkpoint(tmp_path))
    compiled = [record.compiled for record in records]
    assert compiled == sorted(compiled, reverse=True)
    assert set(compiled) == {True, False}
    [sentence] = machine.told
    assert sentence.startswith("compile: off from here on, because there is no C++ compiler")
