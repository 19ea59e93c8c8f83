"""The same cases, chosen by atheris for the lines of ours that they reach: an optional extra, for hours.

pip install -e '.[fuzz]' && python -m tests.fuzz.guided TARGET [-runs=N] [-max_total_time=SECONDS]

Options are libFuzzer's. A case that fails is kept as crash-HASH in the current folder; that name as an argument
repeats it.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline"]):
    from tests.fuzz.cases import FAILED
    from tests.fuzz.judge import judge
    from tests.fuzz.targets import TARGETS


class Drawn(random.Random):
    """Choices that are the fuzzer's bytes, one after the other, and zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0

    def random(self) -> float:
        return self.getrandbits(53) / 2**53

    def getrandbits(self, k: int, /) -> int:
        size = (k + 7) // 8
        piece = self._data[self._at : self._at + size].ljust(size, b"\x00")
        self._at += size
        return int.from_bytes(piece, "big") >> (8 * size - k)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"name a target: {', '.join(TARGETS)}")
    logging.disable()
    warnings.simplefilter("ignore")
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        valid = target.valid(Path(folder, "valid"))

        def one(data: bytes) -> None:
            rng = Drawn(data)
            outcome = judge(target, target.damage(rng.choice(valid), rng), Path(folder, "case"))
            if outcome.kind == FAILED:
                raise RuntimeError(f"{outcome.detail}\n{outcome.trace}")

        # long from the beginning: a few bytes choose hardly any change
        atheris.Setup([sys.argv[0], "-max_len=4096", "-len_control=0", *sys.argv[1:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
