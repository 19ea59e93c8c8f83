from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.device.service.execute import without_paths
from pipeline.portable.documents import Throughput

FILES = Path("/home/pi/.cache/energykd/here")


def test_no_text_tells_of_the_users_home_or_of_where_the_bundle_was_extracted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/pi")
    value = {"/home/pi": ["/home/pi/x", f"{FILES}/bundle/a.onnx is gone", 3, None, True], "t": (1, float("nan"))}
    assert without_paths(value, FILES) == {"~": ["~/x", "bundle/a.onnx is gone", 3, None, True], "t": [1, None]}
    point = Throughput(1, 1, note="at /home/pi: no")
    assert without_paths([point], FILES) == [Throughput(1, 1, note="at ~: no")]


def test_a_folder_whose_name_only_begins_like_home_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/pi")
    assert without_paths(["/home/pi2/x", "/home/pi-old"], FILES) == ["/home/pi2/x", "/home/pi-old"]
    monkeypatch.setenv("HOME", "/")
    assert without_paths("/x", FILES) == "/x"
