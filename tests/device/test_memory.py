from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from pipeline.device.machine import memory


def test_the_peak_stays_and_begins_anew_on_request() -> None:
    # not from malloc, which may take a free place of its heap and then gives nothing back
    block = mmap.mmap(-1, 40_000_000)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    before = memory.peak_memory_kb()
    assert before is not None
    block.close()
    assert memory.peak_memory_kb() == pytest.approx(before, rel=0.02)  # the kernel counts per CPU
    if not memory.reset_peak():
        pytest.skip("this system does not let the peak begin anew")
    after, current = memory.peak_memory_kb(), memory.current_memory_kb()
    assert after is not None
    assert current is not None
    assert after <= before - 30_000
    assert after == pytest.approx(current, rel=0.05)


def test_a_system_without_proc_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    assert (memory.peak_memory_kb(), memory.current_memory_kb()) == (None, None)


def test_a_peak_that_may_not_be_reset_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "absent")
    assert memory.reset_peak() is False
