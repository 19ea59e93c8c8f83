"""A study: a YAML file of arms, each a change to params.yaml, and the seeds that every arm is run with.

title: one line
note: what the reader of the table has to know
reference: KD            # the arm that the others are compared with, seed by seed
seeds: [0, 1, 2]         # of the student; data and teacher use the seed of params.yaml
seconds: 120             # optional: all arms train equally long, on this machine, in place of their number of epochs
params: {...}            # changes to params.yaml that all arms share
arms:
  KD: {...}              # changes of this arm alone

With ``arms: students``, each student of params.yaml is an arm; the reference then is the first, if none is named.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import Params, Positive, Seed, merged, read_yaml, validated
from pipeline.errors import ParamsError

STUDENTS = "students"  # as arms: those of params.yaml


class StudyFile(BaseModel):
    """The schema of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Annotated[str, Field(min_length=1)]
    note: str
    reference: str | None = None
    comparisons: list[tuple[str, str]] = []
    seeds: Annotated[list[Seed], Field(min_length=1)]
    seconds: Positive | None = None
    params: dict[str, Any]
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | Literal["students"]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.reference is None and self.arms != STUDENTS:
            raise ValueError(f"reference is missing; name one of {', '.join(self.arms)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds lists a seed twice; name each seed once")
        return self


@dataclass(frozen=True)
class Trial:
    """One arm with one seed. ``params.seed`` is that of data and teacher; ``seed`` is the student's."""

    arm: str
    seed: int
    params: Params


@dataclass(frozen=True)
class Study:
    """A study with the parameters of every arm checked."""

    name: str
    file: StudyFile
    arms: dict[str, Params]
    reference: str

    @property
    def of_students(self) -> bool:
        """Whether the arms are the students of params.yaml."""
        return self.file.arms == STUDENTS

    def trials(self) -> list[Trial]:
        """All trials, seed by seed, so that a study that was stopped early has whole rounds to compare."""
        return [Trial(arm, seed, params) for seed in self.file.seeds for arm, params in self.arms.items()]


def load_study(path: Path, params_path: Path) -> Study:
    """Read a study and the parameters that it changes.

    Raises:
        ParamsError: a file is missing or does not fit its schema, or an arm leads to parameters that do not fit
            theirs; names the arm.
    """
    file = validated(StudyFile, read_yaml(path), str(path))
    base = merged(read_yaml(params_path), file.params)
    if isinstance(file.arms, dict):
        arms = {
            name: validated(Params, merged(base, changes), f"{path}: arm {name!r}")
            for name, changes in file.arms.items()
        }
    else:
        arms = _students(validated(Params, base, str(path)))
    reference = file.reference or next(iter(arms))
    for key, names in (("reference names", [reference]), ("comparisons name", [*chain(*file.comparisons)])):
        if unknown := [name for name in names if name not in arms]:
            raise ParamsError(f"{path}: {key} {unknown[0]!r}, which is not one of the arms; use {', '.join(arms)}")
    return Study(path.stem, file, arms, reference)


def _students(params: Params) -> dict[str, Params]:
    return {name: params.of_student(name) for name in params.students}
