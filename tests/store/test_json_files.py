from __future__ import annotations

import json

import pytest

from pipeline.errors import DataError
from pipeline.store.json_files import read_json, write_json


def test_json_refuses_numbers_that_json_does_not_have(tmp_path):
    for value, one_line_each in ((float("nan"), False), ({"a": [{"b": float("inf")}]}, True)):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", value, one_line_each=one_line_each)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "\x80"])
def test_damaged_json_ends_in_one_sentence(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"x\.json is not readable as JSON \(.*\); make it again$"):
        read_json(path, "make it again")


def test_a_document_of_many_rows_has_one_line_for_each(tmp_path):
    value = {
        "title": "two\nlines",
        "seeds": [0, 1],
        "empty": [],
        "rows": [{"name": "KD", "top1": [0.5, 0.25]}, {"name": "DKD", "top1": []}],
        "arms": {"KD": {"loss": {"name": "kd"}}, "DKD": {"loss": {"name": "dkd"}}},
    }
    write_json(tmp_path / "x.json", value, one_line_each=True)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert list(json.loads(text)) == list(value), "in the order given"
    assert text.endswith("\n}\n")
    lines = text.splitlines()
    assert '  "seeds": [0, 1],' in lines
    assert lines[lines.index('  "rows": [') + 1] == '    {"name": "KD", "top1": [0.5, 0.25]},'
    assert lines[lines.index('  "arms": {') + 2] == '    "DKD": {"loss": {"name": "dkd"}}'
