from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import DataError, LineageError
from pipeline.store.tables import check_lineage, read_json, read_table, write_json, write_table


def test_json_refuses_numbers_that_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "\x80"])
def test_damaged_json_ends_in_one_sentence(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=r"x\.json is not readable as JSON"):
        read_json(path)


def test_a_table_keeps_types_order_and_lineage(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "index": np.arange(3),
        "energy": np.array([-1, 2, 0.5], np.float32),
        "group": np.array([0, 2, 1], np.int8),
    }
    write_table(path, columns, {"data": "abc"})
    read, lineage = read_table(path)
    assert lineage == {"data": "abc"}
    for name, values in columns.items():
        np.testing.assert_array_equal(read[name], values)
        assert read[name].dtype == values.dtype


def test_a_damaged_or_missing_table_ends_in_one_sentence(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="does not exist"):
        read_table(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_table(path)


def test_mixed_runs_are_refused_with_both_hashes(tmp_path):
    with pytest.raises(LineageError, match=r"teacher aaaa.*teacher in use is bbbb"):
        check_lineage(tmp_path / "energy.parquet", {"teacher": "aaaa"}, {"teacher": "bbbb"})
