from __future__ import annotations

import dataclasses

import pytest

from pipeline.portable.documents import MeasuredRow, Minute, Power, Throughput

ROW = MeasuredRow("ort", "onnxruntime", "fp32", 1, "a board")
POWER = Power("RAPL", 10.0, 14.0, 5.0, 100)
MINUTE = Minute(1, 60.0, True, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, [], 20.0, None, None, None, None)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        (ROW, {"error": "\x1b[2Jowned"}),
        (ROW, {"notes": ["first\nsecond"]}),
        (ROW, {"device_name": "x" * 2001}),
        (ROW, {"latency_p50_ms": -1.0}),
        (ROW, {"latency_p50_ms": float("nan")}),
        (ROW, {"latency_p50_ms": 1e13}),
        (ROW, {"name": "../evil"}),
        (ROW, {"runtime": "on the board"}),
        (POWER, {"idle_watts": -0.1}),
        (MINUTE, {"temperature_c": float("inf")}),
    ],
)
def test_what_cannot_be_shown_or_measured_is_in_no_part_of_a_result(part, changes):
    with pytest.raises(ValueError, match=rf"^{next(iter(changes))} is|is no name of a file"):
        dataclasses.replace(part, **changes)


def test_a_drift_and_the_temperature_of_a_device_outdoors_may_be_negative():
    assert dataclasses.replace(MINUTE, temperature_c=-12.5).temperature_c == -12.5
    assert Throughput(1, 1, drift=-0.5).drift == -0.5
