"""docs/devices.md against the code: the sentences that its troubleshooting quotes are those that the code says."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs/devices.md").read_text()
# the code with its strings in one piece, however they are broken into lines
CODE = "\n".join(
    re.sub(r'"\s*\n\s*f?"', "", path.read_text())
    for folder in ("remote", "device", "report")
    for path in sorted((ROOT / "pipeline" / folder).rglob("*.py"))
)


def quoted() -> list[str]:
    """The sentences in the first column of the table, with ``...`` for what differs."""
    table = PAGE.partition("## Troubleshooting")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [quote for first in firsts for quote in re.findall(r"`([^`]+)`", first)]


@pytest.mark.parametrize("quote", quoted())
def test_a_quoted_sentence_is_one_that_the_code_says(quote: str) -> None:
    pieces = [re.escape(piece.strip(" ()")) for piece in quote.split("...") if piece.strip(" ()")]
    assert re.search(r"[^\n]*".join(pieces), CODE), quote


def test_the_table_is_read() -> None:
    assert len(quoted()) > 30
