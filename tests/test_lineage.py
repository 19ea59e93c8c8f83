"""The chain of a run: what is made from others than those at hand is refused, whoever asks for it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.lineage
from pipeline.errors import DataError, LineageError
from pipeline.lineage import Places, Run
from pipeline.store import documents, paths
from pipeline.store.documents import check_lineage
from pipeline.store.tables import Table, write_table
from tests.conftest import places_in
from tests.report import conftest as made_up

LINKS = {
    "teacher": ["data"],
    "energy": ["data", "teacher"],
    "energy_test": ["data", "teacher", "energy"],
    "subset": ["data", "energy"],
    "student": ["data", "teacher", "energy"],
    **{link: ["data", "teacher", "energy", "student"] for link in ("exported", "evaluation", "benchmark")},
}
NAMES = {"teacher": paths.CARD, "student": paths.CARD, "exported": paths.MANIFEST}  # in their folders


@pytest.fixture(scope="module")
def whole(tiny_run_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run up to the measurements and the student's curves."""
    folder = shutil.copytree(tiny_run_once, tmp_path_factory.mktemp("whole") / "run")
    run = Run(places_in(folder))
    for link, made in [
        ("exported", made_up.export_manifest()),
        ("evaluation", made_up.evaluation()),
        ("benchmark", made_up.benchmark()),
    ]:
        made.model_copy(update={"lineage": run.made_from}).write(file_of(run.places, link))
    curves = documents.CurvesCard(role="student", weights_sha256=run.student.weights_sha256)
    curves.write(run.places.curves["student"] / paths.CURVES_CARD)
    return folder


@pytest.fixture
def places(whole: Path, tmp_path: Path) -> Places:
    return places_in(shutil.copytree(whole, tmp_path / "run"))


def file_of(places: Places, link: str) -> Path:
    place = places.export if link == "exported" else getattr(places, link)
    return place / NAMES[link] if link in NAMES else place


def rewrite(places: Places, link: str, made_from: Mapping[str, str] = {}, **changes: Any) -> None:
    """A file of the run with other hashes in its lineage, and other columns or fields."""
    found, path = getattr(Run(places), link), file_of(places, link)
    lineage = found.lineage.model_copy(update=made_from)
    if isinstance(found, Table):
        write_table(path, [{**found.columns, **changes}], lineage)
    else:
        found.model_copy(update={"lineage": lineage, **changes}).write(path)


def test_each_artifact_is_read_once_and_only_when_it_or_what_comes_after_it_is_asked_for(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counting(path: Path, *arguments: Any) -> Any:
            read[path.relative_to(whole).as_posix()] += 1
            return original(path, *arguments)

        monkeypatch.setattr(module, name, counting)

    count(documents, "read_json")
    count(pipeline.lineage, "read_table")
    run = Run(places_in(whole))
    assert not read
    assert run.teacher.role == "teacher"
    assert set(read) == {"artifacts/data/data.json", "artifacts/teacher/card.json"}
    for _ in range(2):
        assert {run.made_from.student for _ in LINKS} == {run.student.weights_sha256}
        assert all(getattr(run, link) for link in LINKS)
    assert set(read.values()) == {1}
    assert len(read) == 1 + len(LINKS)


@pytest.mark.parametrize(("link", "key"), [(link, key) for link, keys in LINKS.items() for key in keys])
def test_what_is_made_from_another_is_refused_with_both_hashes(places: Places, link: str, key: str) -> None:
    in_use = getattr(Run(places).student.lineage, key) if key != "student" else Run(places).student.weights_sha256
    rewrite(places, link, {key: "f" * 64})
    place = getattr(places, link) if link in ("teacher", "student") else file_of(places, link)
    with pytest.raises(LineageError) as caught:
        getattr(Run(places), link)
    assert str(caught.value) == (
        f"{place} was made from {key} {'f' * 12}, but the {key} in use is {in_use[:12]}; run `dvc repro` so that both "
        "come from one run"
    )


@pytest.mark.parametrize("link", [link for link in LINKS if link not in ("teacher", "subset")])
def test_what_comes_later_is_refused_with_the_link_before_it(places: Places, link: str) -> None:
    rewrite(places, "teacher", {"data": "f" * 64})
    with pytest.raises(LineageError, match=r"artifacts/teacher was made from data f{12}"):
        getattr(Run(places), link)


@pytest.mark.parametrize(("link", "other"), [("energy", "energy_test"), ("energy_test", "energy")])
def test_energies_of_the_other_split_are_refused(places: Places, link: str, other: str) -> None:
    shutil.copy(getattr(places, other), getattr(places, link))
    with pytest.raises(LineageError, match=r"\.parquet was made from split (train|test), but the split in use is t"):
        getattr(Run(places), link)


@pytest.mark.parametrize("link", ["energy", "energy_test"])
def test_energies_of_fewer_images_are_refused(places: Places, link: str) -> None:
    columns = getattr(Run(places), link).columns
    rewrite(places, link, **{name: column[:-1] for name, column in columns.items()})
    with pytest.raises(DataError, match=rf"parquet does not list the images 0 to {len(columns['index']) - 1}; run"):
        getattr(Run(places), link)


def test_a_subset_of_images_that_are_not_there_is_refused(places: Places) -> None:
    index = Run(places).subset.columns["index"]
    rewrite(places, "subset", index=np.append(index[:-1], Run(places).data.counts.train))
    with pytest.raises(DataError, match=r"heda_subset\.parquet has images that are not among the 1294; run"):
        _ = Run(places).subset


@pytest.mark.parametrize("link", ["evaluation", "benchmark"])
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("student_int8.onnx", {"sha256": "f" * 64}, "measured student_int8.onnx with hash f{12}, but .* has hash"),
        ("student_fp32.onnx", {"name": "other.onnx"}, "row for other.onnx, which the export manifest does not list"),
    ],
)
def test_a_measurement_of_another_file_is_refused(
    places: Places, link: str, name: str, change: dict[str, str], words: str
) -> None:
    made = getattr(Run(places), link)
    rewrite(places, link, rows=made_up.with_rows(made, lambda row: made_up.changed(row, **change), name).rows)
    with pytest.raises(LineageError, match=words):
        getattr(Run(places), link)


def test_curves_of_another_network_are_refused(places: Places) -> None:
    run = Run(places)
    run.check_curves("student", run.student)
    with pytest.raises(
        LineageError, match=r"curves/student was made from student .{12}, but the student in use is f{12}"
    ):
        run.check_curves("student", run.student.model_copy(update={"weights_sha256": "f" * 64}))
    with pytest.raises(LineageError, match="curves/student was made from teacher None"):
        Run(Places(curves={"teacher": places.curves["student"]})).check_curves("teacher", run.teacher)


@pytest.mark.parametrize("link", ["data", *LINKS])
def test_what_is_missing_is_named(places: Places, link: str) -> None:
    path = places.data / paths.DATA_CARD if link == "data" else file_of(places, link)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} does not exist; run `dvc repro"):
        getattr(Run(places), link)


def test_a_hash_of_what_is_missing_is_none(tmp_path: Path) -> None:
    for hashed in ("energy_sha256", "subset_sha256"):
        with pytest.raises(DataError, match=r"\.parquet does not exist; run `dvc repro` to make it"):
            getattr(Run(places_in(tmp_path)), hashed)


def test_a_remedy_of_ones_own_takes_the_place_of_the_usual_one(tmp_path: Path) -> None:
    with pytest.raises(
        LineageError, match=r"^a was made from teacher \\x1b, but the teacher in use is bbbb; remove it$"
    ):
        check_lineage(Path("a"), {"teacher": "\x1b"}, {"teacher": "bbbb"}, "remove it")
