"""The chain of a run: what is made from others than those at hand is refused, whoever asks for it."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.lineage
from pipeline.config import TEACHER
from pipeline.errors import DataError, LineageError
from pipeline.lineage import NetworkRun, Places, Run
from pipeline.portable.accuracy import Expected, Outputs, score
from pipeline.portable.documents import MeasuredRow
from pipeline.portable.files import sha256_file
from pipeline.store import documents, paths
from pipeline.store.answers import Answers, FileAnswers, SplitAnswers
from pipeline.store.documents import check_lineage
from pipeline.store.tables import Table, write_table
from tests.conftest import STUDENT, entry, places_in, write_student

STUDENTS = (STUDENT, "small")
NETWORKS = (*STUDENTS, TEACHER)
IN_USE = ["data", "teacher", "energy", "network"]
# what is read -> what it is made from
LINKS = {
    "teacher.card": ["data"],
    "energy": ["data", "teacher"],
    "energy_test": ["data", "teacher", "energy"],
    "subset": ["data", "energy"],
    **{f"{name}.card": ["data", "teacher", "energy"] for name in STUDENTS},
    **{f"{name}.{link}": IN_USE for name in NETWORKS for link in ("exported", "evaluation")},
    "benchmark": ["data", "teacher", "energy"],
}


@pytest.fixture(scope="module")
def whole(tiny_run_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two students up to the measurements."""
    folder = shutil.copytree(tiny_run_once, tmp_path_factory.mktemp("whole") / "run")
    write_student(Run(places_in(folder)), "small")
    run = run_in(places_in(folder))
    for network in run.networks:
        owner = {"role": network.role, "student": network.student}
        file = documents.ExportedFile(**entry(f"{network.name}_fp32.onnx", sha(network.name), **owner))
        manifest = documents.ExportManifest(lineage=network.made_from, opset=18, files=[file])
        manifest.write(network.places.export / paths.MANIFEST)
        answers = FileAnswers(*[SplitAnswers(np.ones(2, bool), *np.zeros((2, 2), np.float32))] * 2)
        Answers(answers, {(file.name, "onnxruntime"): answers}).write(network.places.answers)
        evaluation(network).write(network.places.evaluation)
        curves = documents.CurvesCard(role=network.role, weights_sha256=network.card.weights_sha256)
        curves.write(network.places.curves / paths.CURVES_CARD)
    measurement(run).write(run.places.benchmark)
    return folder


@pytest.fixture
def places(whole: Path, tmp_path: Path) -> Places:
    return places_in(shutil.copytree(whole, tmp_path / "run"))


def run_in(places: Places) -> Run:
    return Run(places, STUDENTS)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def evaluation(network: NetworkRun) -> documents.Evaluation:
    logits, zeros = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    router = documents.Router(threshold=None, coverage=1.0, kept=2, top1=1.0, aurc=0.0, curve=[1.0])
    row = documents.EvaluatedRow(
        name=f"{network.name}_fp32.onnx",
        runtime="onnxruntime",
        sha256=sha(network.name),
        precision_executed="fp32",
        precision_mismatch=None,
        provider="CPU",
        runtime_version="1",
        accuracy=score(Outputs(logits, zeros), Expected(logits, zeros, np.arange(2), np.ones(2, np.int8))),
        balanced_accuracy=1.0,
        shots=None,
        ece=0.0,
        routing=documents.Routing(wanted_top1=0.99, energy=router, max_softmax=router),
    )
    return documents.Evaluation(
        lineage=network.made_from,
        answers_sha256=sha256_file(network.places.answers),
        test_images=2,
        group_sizes={"low": 0, "mid": 2, "high": 0},
        shot_classes=None,
        rows=[row],
    )


def measurement(run: Run) -> documents.Measurement:
    names = [network.name for network in run.networks]
    return documents.Measurement(
        **{"device": "Example CPU", "machine": {}, "settings": {}, "tuning": {}, "notes": []},
        lineage=run.measured_from(run.networks),
        bundle_sha256=sha("bundle"),
        samples_sha256=sha("samples"),
        started_at=1.0,
        seconds=1.0,
        rows=[MeasuredRow(f"{name}_fp32.onnx", "onnxruntime", "fp32", 1, "CPU", sha256=sha(name)) for name in names],
    )


def read(places: Places, link: str) -> Any:
    """What a link of the chain holds: of the run, or of the network that its name begins with."""
    name, _, of_network = link.rpartition(".")
    run = run_in(places)
    return getattr(run.network(name), of_network) if name else getattr(run, link)


def file_of(places: Places, link: str) -> Path:
    name, _, kind = link.rpartition(".")
    if not name:
        return places.data / paths.DATA_CARD if link == "data" else getattr(places, link)
    found = places.network(name)
    folders = {"card": found.weights / paths.CARD, "exported": found.export / paths.MANIFEST}
    return folders.get(kind) or getattr(found, kind)


def rewrite(places: Places, link: str, made_from: Mapping[str, Any] = {}, **changes: Any) -> None:
    """A file of the run with other hashes in its lineage, and other columns or fields."""
    found, path = read(places, link), file_of(places, link)
    lineage = found.lineage.model_copy(update=made_from)
    if isinstance(found, Table):
        write_table(path, [{**found.columns, **changes}], lineage)
    else:
        found.model_copy(update={"lineage": lineage, **changes}).write(path)


def test_each_artifact_is_read_once_and_only_when_it_or_what_comes_after_it_is_asked_for(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counting(path: Path, *arguments: Any) -> Any:
            seen[path.relative_to(whole).as_posix()] += 1
            return original(path, *arguments)

        monkeypatch.setattr(module, name, counting)

    count(documents, "read_json")
    count(pipeline.lineage, "read_table")
    run = run_in(places_in(whole))
    assert not seen
    assert run.teacher.role == "teacher"
    assert set(seen) == {"artifacts/data/data.json", "artifacts/teacher/card.json"}
    small = run.network("small")
    assert small.exported.lineage.network == small.card.weights_sha256
    assert not any("students/student" in path for path in seen), "each student has a chain of its own"
    for _ in range(2):
        assert run.network("small") is small
        assert run.measured_from(run.students).networks == {
            each.name: each.card.weights_sha256 for each in run.students
        }
        for link in LINKS:
            name, _, of_network = link.rpartition(".")
            assert getattr(run.network(name) if name else run, of_network)
    assert set(seen.values()) == {1}
    assert len(seen) == 1 + len(LINKS)


def test_networks_are_the_students_in_order_and_the_teacher_each_with_its_files(whole: Path) -> None:
    run = run_in(places_in(whole))
    assert [(each.name, each.role, each.student) for each in run.networks] == [
        ("student", "student", "student"),
        ("small", "student", "small"),
        ("teacher", "teacher", None),
    ]
    assert [file.name for file in run.files] == ["student_fp32.onnx", "small_fp32.onnx", "teacher_fp32.onnx"]
    assert [file.student for file in run.files] == ["student", "small", None]
    assert len({each.card.weights_sha256 for each in run.networks}) == 3
    assert run.teacher == run.network(TEACHER).card
    assert run.network(TEACHER).made_from.network == run.teacher.weights_sha256
    assert list(run.network("small").answers.files) == [("small_fp32.onnx", "onnxruntime")]


@pytest.mark.parametrize(("link", "key"), [(link, key) for link, keys in LINKS.items() for key in keys])
def test_what_is_made_from_another_is_refused_with_both_hashes(places: Places, link: str, key: str) -> None:
    name, _, kind = link.rpartition(".")
    in_use = getattr(run_in(places).network(name or STUDENT).made_from, key)
    rewrite(places, link, {key: "f" * 64})
    with pytest.raises(LineageError) as caught:
        read(places, link)
    place = file_of(places, link)
    assert str(caught.value) == (
        f"{place.parent if kind == 'card' else place} was made from {key} {'f' * 12}, but the {key} in use is "
        f"{in_use[:12]}; run `dvc repro` so that both come from one run"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_measurement_of_other_weights_is_refused(places: Places, name: str) -> None:
    measured = read(places, "benchmark").lineage.networks
    rewrite(places, "benchmark", {"networks": measured | {name: "f" * 64}})
    in_use = run_in(places).network(name).card.weights_sha256[:12]
    with pytest.raises(
        LineageError, match=rf"benchmark\.json was made from {name} f{{12}}, but the {name} in .* {in_use}"
    ):
        read(places, "benchmark")


def test_a_measurement_holds_all_students_of_the_run_and_no_other(places: Places) -> None:
    measured, rows = read(places, "benchmark").lineage.networks, read(places, "benchmark").rows
    with pytest.raises(LineageError, match=r"row for small_fp32\.onnx, which the export manifest does not list; run"):
        _ = Run(places, [STUDENT]).benchmark
    rewrite(places, "benchmark", {"networks": {name: measured[name] for name in (STUDENT, TEACHER)}}, rows=rows[::2])
    with pytest.raises(LineageError, match=r"was made from small None, but the small in use is"):
        read(places, "benchmark")


def test_a_measurement_need_not_hold_the_teacher_which_has_no_file_for_some_runtimes(places: Places) -> None:
    measured, rows = read(places, "benchmark").lineage.networks, read(places, "benchmark").rows
    rewrite(places, "benchmark", {"networks": {name: measured[name] for name in STUDENTS}}, rows=rows[:2])
    assert len(read(places, "benchmark").rows) == 2
    read(places, "teacher.exported").model_copy(update={"files": []}).write(file_of(places, "teacher.exported"))
    assert read(places, "benchmark").lineage.networks.keys() == set(STUDENTS)


@pytest.mark.parametrize("link", [link for link in LINKS if link not in ("teacher.card", "subset")])
def test_what_comes_later_is_refused_with_the_link_before_it(places: Places, link: str) -> None:
    rewrite(places, "teacher.card", {"data": "f" * 64})
    with pytest.raises(LineageError, match=r"artifacts/teacher was made from data f{12}"):
        read(places, link)


@pytest.mark.parametrize(("link", "other"), [("energy", "energy_test"), ("energy_test", "energy")])
def test_energies_of_the_other_split_are_refused(places: Places, link: str, other: str) -> None:
    shutil.copy(getattr(places, other), getattr(places, link))
    with pytest.raises(LineageError, match=r"\.parquet was made from split (train|test), but the split in use is t"):
        read(places, link)


@pytest.mark.parametrize("link", ["energy", "energy_test"])
def test_energies_of_fewer_images_are_refused(places: Places, link: str) -> None:
    columns = read(places, link).columns
    rewrite(places, link, **{name: column[:-1] for name, column in columns.items()})
    with pytest.raises(DataError, match=rf"parquet does not list the images 0 to {len(columns['index']) - 1}; run"):
        read(places, link)


def test_a_subset_of_images_that_are_not_there_is_refused(places: Places) -> None:
    index = run_in(places).subset.columns["index"]
    rewrite(places, "subset", index=np.append(index[:-1], run_in(places).data.counts.train))
    with pytest.raises(DataError, match=r"heda_subset\.parquet has images that are not among the 1294; run"):
        _ = run_in(places).subset


@pytest.mark.parametrize("link", ["small.evaluation", "benchmark"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "f" * 64}, "measured small_fp32.onnx with hash f{12}, but .* has hash"),
        ({"name": "other.onnx"}, "row for other.onnx, which the export manifest does not list"),
    ],
)
def test_a_measurement_of_another_file_is_refused(
    places: Places, link: str, change: dict[str, str], words: str
) -> None:
    rows = [type(row)(**vars(row) | change) if "small" in row.name else row for row in read(places, link).rows]
    rewrite(places, link, rows=rows)
    with pytest.raises(LineageError, match=words):
        read(places, link)


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_of_another_evaluation_are_refused(places: Places, name: str) -> None:
    path, recorded = file_of(places, f"{name}.answers"), read(places, f"{name}.evaluation").answers_sha256
    whole = read(places, f"{name}.answers")
    Answers(whole.network, {}).write(path)
    found = sha256_file(path)
    with pytest.raises(LineageError) as caught:
        read(places, f"{name}.answers")
    assert str(caught.value) == (
        f"{path.with_name(paths.EVALUATION)} was made from answers {recorded[:12]}, but the answers in use is "
        f"{found[:12]}; run `dvc repro` so that both come from one run"
    )


def test_curves_of_another_network_are_refused(places: Places) -> None:
    run = run_in(places)
    for network in run.networks:
        network.check_curves()
    student, small = (run.network(name) for name in STUDENTS)
    shutil.copytree(student.places.curves, small.places.curves, dirs_exist_ok=True)
    hashes = [each.card.weights_sha256[:12] for each in (student, small)]
    with pytest.raises(
        LineageError, match=r"small/curves was made from student {}, but the student in use is {}".format(*hashes)
    ):
        small.check_curves()
    shutil.copytree(run.network(TEACHER).places.curves, small.places.curves, dirs_exist_ok=True)
    with pytest.raises(LineageError, match="small/curves was made from student None"):
        small.check_curves()


@pytest.mark.parametrize("link", ["data", *LINKS, *(f"{name}.answers" for name in NETWORKS)])
def test_what_is_missing_is_named(places: Places, link: str) -> None:
    path = file_of(places, link)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} does not exist; run `dvc repro"):
        read(places, link)


@pytest.mark.parametrize(("link", "work"), [("exported", "export"), ("evaluation", "evaluate")])
def test_what_is_missing_of_the_teacher_names_the_stage_of_the_teacher(places: Places, link: str, work: str) -> None:
    for name, stage in (("small", work), (TEACHER, f"{work}_teacher")):
        file_of(places, f"{name}.{link}").write_text("{}")
        with pytest.raises(DataError, match=rf"; run `dvc repro -fs {stage}`$"):
            read(places, f"{name}.{link}")


def test_a_hash_of_what_is_missing_is_none(tmp_path: Path) -> None:
    for hashed in ("energy_sha256", "subset_sha256"):
        with pytest.raises(DataError, match=r"\.parquet does not exist; run `dvc repro` to make it"):
            getattr(Run(places_in(tmp_path)), hashed)


def test_a_remedy_of_ones_own_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    with pytest.raises(
        LineageError, match=r"^a was made from teacher \\x1b, but the teacher in use is bbbb; remove it$"
    ):
        check_lineage(Path("a"), {"teacher": "\x1b"}, {"teacher": "bbbb"}, "remove it")
