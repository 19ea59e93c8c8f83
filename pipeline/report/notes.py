"""Notes under a table: what is true of all rows once, the rest numbered, each row with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Notes:
    """Notes of the rows of one table.

    Attributes:
        common: of every row, where there are several.
        numbered: the others, in the order in which rows have them.
    """

    common: Sequence[str]
    numbered: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Notes:
        found = list(dict.fromkeys(note for row in rows for note in row["notes"]))
        common = [note for note in found if all(note in row["notes"] for row in rows)] if len(rows) > 1 else []
        return cls(common, [note for note in found if note not in common])

    def numbers_of(self, row: Mapping[str, Any]) -> list[int]:
        """From 1."""
        return [self.numbered.index(note) + 1 for note in dict.fromkeys(row["notes"]) if note not in self.common]
