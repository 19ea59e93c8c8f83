from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError
from pipeline.store import tables
from pipeline.store.tables import SubsetLineage, read_table, write_table

LINEAGE = SubsetLineage(data="a" * 64, energy="b" * 64, fraction=0.4, subset="random")
COLUMNS = {"index": np.arange(3), "label": np.array([2, 0, 1]), "energy": np.array([-1, 2, 0.5], np.float32)}


def test_a_table_keeps_types_order_and_lineage(tmp_path):
    path = tmp_path / "t.parquet"
    further = {
        "confidence": np.float32([0.5, 1, 0]),
        "correct": np.array([True, False, True]),
        "group": np.int8([0, 2, 1]),
    }
    write_table(path, [COLUMNS | further], LINEAGE)
    read = read_table(path, SubsetLineage)
    assert read.lineage == LINEAGE
    assert list(read.columns) == [*COLUMNS, *further]
    for name, values in (COLUMNS | further).items():
        np.testing.assert_array_equal(read.columns[name], values)
        assert read.columns[name].dtype == values.dtype


def test_parts_are_row_groups_of_one_table(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(
        path, ({name: column[part] for name, column in COLUMNS.items()} for part in (slice(2), slice(2, 3))), LINEAGE
    )
    np.testing.assert_array_equal(read_table(path, SubsetLineage).columns["label"], COLUMNS["label"])
    assert pq.ParquetFile(path).num_row_groups == 2
    with pytest.raises(ValueError, match="neither rows nor columns"):
        write_table(tmp_path / "none.parquet", [], LINEAGE)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_or_missing_table_ends_in_one_sentence(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match=r"does not exist; run `dvc repro build_subset`$"):
        read_table(path, SubsetLineage)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_table(path, SubsetLineage)


@pytest.mark.parametrize(
    ("columns", "lineage", "words"),
    [
        (
            COLUMNS,
            LINEAGE.model_copy(update={"subset": "best"}),
            r"is not what it should be \(subset is 'best': .*\); ",
        ),
        (COLUMNS, LINEAGE.model_copy(update={"data": "x"}), r"is not what it should be \(data is 'x': .*\); "),
        ({"index": np.arange(3)}, LINEAGE, "has no column label, so it is not the expected table; "),
        (COLUMNS | {"index": np.array([0, -1, 2])}, LINEAGE, "has values of index outside of 0 to 1099511627776; "),
    ],
)
def test_another_table_is_refused(tmp_path, columns, lineage, words):
    write_table(tmp_path / "t.parquet", [columns], lineage)
    with pytest.raises(DataError, match=rf"t\.parquet {words}run `dvc repro build_subset`$"):
        read_table(tmp_path / "t.parquet", SubsetLineage)


def test_a_table_of_another_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(path, [COLUMNS], LINEAGE)
    monkeypatch.setattr(SubsetLineage, "FORMAT", 2)
    with pytest.raises(DataError) as caught:
        read_table(path, SubsetLineage)
    assert str(caught.value) == (f"{path} has format 1, but this version reads 2; run `dvc repro -fs build_subset`")


def test_a_table_of_others_is_told_by_its_missing_lineage(tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet carries no lineage; run"):
        read_table(tmp_path / "t.parquet", SubsetLineage)


def test_the_hash_of_a_model_is_one_of_all_its_files(tmp_path):
    xml, weights = tmp_path / "a.xml", tmp_path / "a.bin"
    xml.write_bytes(b"graph")
    with pytest.raises(DataError, match=r"a\.bin does not exist; run `dvc repro` to make it"):
        tables.sha256_model(xml)
    weights.write_bytes(b"1")
    first = tables.sha256_model(xml)
    weights.write_bytes(b"2")
    assert tables.sha256_model(xml) != first
