from __future__ import annotations

import pytest

from pipeline.report import formatting

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04123, "0.0412"), (0.2979, "0.298"), (1.0, "1.00"), (9.999, "10.0"), (99.96, "100"), (12345.6, "12,300")],
)
def test_latency_has_three_significant_digits_and_no_exponent(value: float, text: str) -> None:
    assert formatting.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(97_861, "97.9 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"), (1_103_207, "1.10 MB"), (0, "0 kB")],
)
def test_size_is_in_kilobytes_below_a_megabyte(value: int, text: str) -> None:
    assert formatting.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950"), (78_042, "78.0 k"), (999_600, "1.00 M"), (4.1e9, "4.10 G")],
)
def test_counts_of_parameters_have_a_unit(value: float, text: str) -> None:
    assert formatting.count(value) == text


def test_difference_has_a_sign_unless_it_rounds_to_zero() -> None:
    assert formatting.points(0.0123) == "+1.2"
    assert formatting.points(-0.0123, 2) == f"{MINUS}1.23"
    assert formatting.points(-0.0001) == "0.0"
    assert formatting.interval(-0.01, 0.004) == f"{MINUS}1.0 to +0.4"


def test_accuracy_of_few_images_has_fewer_decimals() -> None:
    assert formatting.percent(0.97222, formatting.accuracy_decimals(360)) == "97.2"
    assert formatting.percent(0.97222, formatting.accuracy_decimals(10_000)) == "97.22"


@pytest.mark.parametrize(
    "formatter",
    [
        formatting.percent,
        formatting.points,
        formatting.milliseconds,
        formatting.size,
        formatting.number,
        formatting.logit_error,
    ],
)
def test_what_was_not_measured_is_a_dash_and_not_a_zero(formatter: object) -> None:
    assert callable(formatter)
    assert formatter(None) == formatting.NOT_MEASURED


def test_nested_settings_become_dotted_keys() -> None:
    settings = {"a": {"b": 1, "c": [0.5, True]}, "d": None, "e": 272474}
    assert formatting.flatten(settings) == [("a.b", "1"), ("a.c", "0.5, yes"), ("d", "\N{EN DASH}"), ("e", "272,474")]
