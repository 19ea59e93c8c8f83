"""The measurement of scoring's memory in a small form."""

from __future__ import annotations

import pytest

from bench.scoring_memory import main


@pytest.mark.e2e
def test_each_size_is_scored_and_set_against_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    main([400, 300], pixels=8)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "images"
    figures = [row.split() for row in rows]
    assert [figure[0] for figure in figures] == ["300", "400"]
    assert all(int(figure[3]) > 100 for figure in figures), "MiB of a process that has imported torch"
    assert [figures[0][4], figures[0][6]] == ["+0", "+0"]
