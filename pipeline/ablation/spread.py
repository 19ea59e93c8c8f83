"""How much the accuracy of each student of params.yaml varies with its seed, from the study of the students."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.ablation.results import StudyResult, settings_of
from pipeline.ablation.statistics import Difference, differences, mean_and_deviation
from pipeline.config import Params
from pipeline.errors import LineageError
from pipeline.store.documents import check_lineage


@dataclass(frozen=True)
class Spread:
    """Test top-1 of a student after its last epoch, over the seeds.

    Attributes:
        seeds: how many.
        mean: 0..1.
        deviation: of the sample; None for one seed.
        reference: name of the student that it is compared with.
        difference: to the reference, seed by seed; None for the reference itself.
    """

    seeds: int
    mean: float
    deviation: float | None
    reference: str
    difference: Difference | None


def read_spread(path: Path, students: Mapping[str, Params], made_from: Mapping[str, str]) -> dict[str, Spread]:
    """The spread of each student that the study in ``path`` has run; {} if there is no such file.

    Args:
        students: name -> the parameters with the block ``distill`` of this student.
        made_from: hashes of ``data`` and ``teacher`` in use.

    Raises:
        DataError: the file is damaged.
        LineageError: the study was run with another teacher, on other data or with other parameters; says what to do.
    """
    if not path.exists():
        return {}
    again = "run `make ablation` with the study of the students again"
    result = StudyResult.read(path, again)
    for row in result.rows:
        check_lineage(path, row.lineage, made_from, f"remove {path.parent} and {again}")
    shown = students.keys() & result.settings.keys()
    for name in sorted(shown):
        if settings_of(students[name]) != result.settings[name]:
            raise LineageError(f"{path} was made with other parameters of the student {name}; {again}")
    top1, reference = result.per_seed("last", "top1"), result.reference
    against = [(name, reference) for name in top1 if name != reference]
    to_reference = dict(zip([name for name, _ in against], differences(top1, against, len(against)), strict=True))
    return {
        name: Spread(len(values), *mean_and_deviation(values), reference, to_reference.get(name))
        for name, values in top1.items()
        if name in shown
    }
