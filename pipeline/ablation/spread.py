"""How much the accuracy of each student of params.yaml varies with its seed, from the study of the students."""

from pipeline.ablation.results import StudyResult
from pipeline.ablation.statistics import differences, mean_and_deviation
from pipeline.store.documents import SeedDifference, StudentSpread, StudentsSpread


def spread_of(result: StudyResult) -> StudentsSpread:
    """The spread of the students, each of which is an arm of the study."""
    top1, reference = result.per_seed("last", "top1"), result.reference
    against = [(name, reference) for name in top1 if name != reference]
    found = dict(zip([name for name, _ in against], differences(top1, against, len(against)), strict=True))
    to_reference = {
        name: SeedDifference(reference=reference, value=each.value, half_width=each.half_width)
        for name, each in found.items()
    }
    students = {}
    for name, values in top1.items():
        mean, deviation = mean_and_deviation(values)
        made_from = next(row.lineage for row in result.rows if row.arm == name)
        students[name] = StudentSpread(
            seeds=len(values),
            mean=mean,
            deviation=deviation,
            difference=to_reference.get(name),
            distill=result.settings[name]["distill"],
            initial_weights=made_from.get("initial_weights"),
            soft_labels=made_from.get("soft_labels"),
        )
    shared, lineage = result.settings[reference], result.rows[0].lineage  # students differ in their block distill alone
    return StudentsSpread(
        **{key: lineage[key] for key in ("data", "teacher", "energy")},
        heda=shared["heda"],
        augmentation=shared["data"]["augmentation"],
        students=students,
    )
