from __future__ import annotations

import torch

from pipeline.soft_labels.rows import Rows

EXTRA = torch.tensor([1, 4, 5])
NONE = torch.tensor([], dtype=torch.int64)


def test_every_view_has_one_row_and_every_row_one_view():
    for rows in (Rows(7, 3, 0, NONE), Rows(7, 3, 2, EXTRA)):
        index, number = rows.at(torch.arange(len(rows)))
        assert len({*zip(index.tolist(), number.tolist(), strict=True)}) == len(rows)
        for image in range(7):
            count = 3 + (2 if rows.extra and image in EXTRA else 0)
            assert sorted(number[index == image].tolist()) == list(range(count))


def test_the_views_of_an_image_come_one_after_the_other_and_then_from_the_first_on():
    rows, index = Rows(7, 3, 2, EXTRA), torch.tensor([0, 4, 6])
    numbers = torch.stack([rows.of(index, epoch)[0] for epoch in range(8)]).T
    assert numbers.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 2, 0, 1]]


def test_the_row_of_a_view_is_where_it_was_stored():
    rows = Rows(7, 3, 2, EXTRA)
    for epoch in range(6):
        index = torch.arange(7)
        number, row = rows.of(index, epoch)
        assert [column.tolist() for column in rows.at(row)] == [index.tolist(), number.tolist()]


def test_without_views_there_are_no_rows():
    assert len(Rows(7, 0, 0, NONE)) == 0
