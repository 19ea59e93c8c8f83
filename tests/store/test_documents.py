from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
from pydantic import BaseModel

from pipeline.errors import DataError
from pipeline.store import documents
from pipeline.store.documents import Document, Hash, Part, Share, Word, parse_as
from tests.conftest import CARD, write_manifest


class Row(Part):
    name: Word
    top1: Share


class Table(Document):
    FORMAT: ClassVar[int] = 3
    MADE_BY: ClassVar[str] = "export"

    sha256: Hash
    rows: list[Row]


TABLE = Table(sha256="0" * 64, rows=[Row(name="a", top1=0.5)])
CONTENT = {"format": 3, "sha256": "0" * 64, "rows": [{"name": "a", "top1": 0.5}]}


def test_a_document_comes_back_as_written_with_its_format(tmp_path):
    path = tmp_path / "a.json"
    assert TABLE.write(path) is TABLE
    assert json.loads(path.read_text()) == TABLE.content() == CONTENT
    assert Table.read(path) == TABLE


@pytest.mark.parametrize("value", [CONTENT | {"format": 2}, CONTENT | {"format": "3"}, {}, [], "a", 5, None])
def test_another_format_is_refused_before_all_else(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError) as caught:
        Table.read(path)
    found = value.get("format") if isinstance(value, dict) else None
    assert str(caught.value) == f"{path} has format {found}, but this version reads 3; run `dvc repro -fs export`"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 1}, "colour is not a known key"),
        ({"rows": [{"name": "a", "top1": 0.5, "top5": 1}]}, "rows.0.top5 is not a known key"),
        ({"rows": [{"name": "a"}]}, "rows.0.top1 is missing"),
        ({"rows": [{"name": "a", "top1": 1.5}]}, "rows.0.top1 is 1.5: input should be less than or equal to 1"),
        ({"rows": [{"name": "a", "top1": "0.5"}]}, "rows.0.top1 is '0.5': input should be a valid number"),
        ({"rows": [{"name": "\x1b[2J", "top1": 0.5}]}, "rows.0.name: it has characters that cannot be shown"),
        ({"rows": None}, "rows is null"),
        ({"sha256": "0" * 63}, "sha256 is '000"),
    ],
)
def test_a_document_of_other_keys_or_values_ends_in_one_sentence(tmp_path, changes, words):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT | changes))
    with pytest.raises(DataError) as caught:
        Table.read(path)
    assert re.fullmatch(rf"{path} is not what it should be \(.*\); run `dvc repro export`", str(caught.value))
    assert words in str(caught.value)
    assert str(caught.value).count(";") == 1, "advice for files that people write is left out"


def test_a_missing_or_damaged_document_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json does not exist; run `dvc repro export`$"):
        Table.read(path)
    path.write_text('{"format": 3')
    with pytest.raises(DataError, match=r"a\.json is not readable as JSON \(.*\); remove it$"):
        Table.read(path, "remove it")


def test_what_is_wrong_with_a_network_is_mended_by_its_own_stage(tmp_path):
    path = tmp_path / "card.json"
    for role, remedy in [("teacher", " -fs train_teacher"), ("student", " -fs distill"), ("\x1b", "")]:
        path.write_text(json.dumps({"format": 0, "role": role}))
        with pytest.raises(DataError, match=f"has format 0, but this version reads 2; run `dvc repro{remedy}`$"):
            documents.NetworkCard.read(path)


CARD_OF_NETWORK = {**CARD, "parameters": 1, "macs": 1, "weights_sha256": "0" * 64}
LINEAGE = CARD["lineage"]


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (documents.NetworkCard, CARD_OF_NETWORK | {"num_classes": 10**9}, "num_classes is not the 5 of class_names"),
        (documents.NetworkCard, CARD_OF_NETWORK | {"heda": None}, "a student's card must have distill, heda"),
        (
            documents.NetworkCard,
            CARD_OF_NETWORK | {"lineage": LINEAGE | {"energy": None}},
            "a student's card must have",
        ),
        (
            documents.Router,
            {"threshold": None, "coverage": 0.0, "kept": 0, "top1": 0.5, "aurc": 0.1, "curve": [0.5]},
            "top1 must be null if no image is kept",
        ),
    ],
)
def test_a_document_whose_parts_contradict_each_other_is_refused(kind: type[BaseModel], values, words):
    with pytest.raises(ValueError, match=words):
        kind.model_validate_json(json.dumps(values), strict=True)
    documents.NetworkCard.model_validate_json(json.dumps(CARD_OF_NETWORK), strict=True)


def test_an_export_manifest_lists_each_file_once_or_none(tmp_path):
    path = tmp_path / "export.json"
    (tmp_path / "a.onnx").touch()
    write_manifest(path, "a.onnx", "a.onnx")
    with pytest.raises(DataError, match="a file is listed twice"):
        documents.ExportManifest.read(path)
    write_manifest(path)
    assert documents.ExportManifest.read(path).files == []


def test_a_measurement_is_of_some_network():
    made_from = dict.fromkeys(("data", "teacher", "energy"), "0" * 64)
    documents.MeasuredFrom(**made_from, networks={"small": "0" * 64})
    with pytest.raises(ValueError, match="at least 1 item"):
        documents.MeasuredFrom(**made_from, networks={})


def test_a_file_of_another_stage_than_usual_names_that_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT | {"format": 2}))
    with pytest.raises(DataError, match=r"this version reads 3; run `dvc repro -fs export_teacher`$"):
        Table.read(path, stage="export_teacher")
    path.write_text(json.dumps(CONTENT | {"rows": 1}))
    with pytest.raises(DataError, match=r"; run `dvc repro export_teacher`$"):
        Table.read(path, stage="export_teacher")


@dataclass(frozen=True)
class Sent:
    name: str
    count: int = 0


def test_what_a_device_sends_may_hold_more_but_nothing_else():
    assert parse_as(Sent, b'{"name": "a", "colour": 1}') == Sent("a")
    for content, words in [(b'{"count": 1}', "name: Field required"), (b'{"name": "a", "count": "1"}', "count: .*int")]:
        with pytest.raises(ValueError, match=words):
            parse_as(Sent, content)
    with pytest.raises(ValueError, match="expected value"):
        parse_as(Sent, b'{"name": "a", "count": NaN}')
