"""The measurement of scoring's memory in a small form."""

from __future__ import annotations

import pytest

from bench import scoring_memory


@pytest.mark.e2e
def test_each_size_is_scored_and_set_against_the_smallest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_memory, "in_child", lambda *words: scoring_memory.command(list(words)))
    scoring_memory.main([400, 300], pixels=8)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "images"
    figures = [row.split() for row in rows]
    assert [figure[0] for figure in figures] == ["300", "400"]
    assert all(int(figure[3]) > 100 for figure in figures), "MiB of a process that has imported torch"
    assert [figures[0][4], figures[0][6]] == ["+0", "+0"]
