from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.errors import PlanError

VARIANT = Variant("fp32-ort", "onnxruntime", "student_fp32.onnx", "fp32", "x.npy")
OTHER = Variant("int8", "openvino", "a.xml", "int8", "y.npy", "y.npz", 4, "gpu", fixed_batch=True)


def test_a_plan_survives_json() -> None:
    passes = {"cold_rounds": 3, "memory_pass": True, "throughput": ((1, 1), (8, 0))}
    plan = Plan((VARIANT, OTHER), threads=2, min_seconds=0.5, **passes)  # type: ignore[arg-type]
    assert Plan.from_json(plan.to_json()) == plan


def test_all_files_of_all_variants_can_be_moved() -> None:
    first, second = Plan((VARIANT, OTHER)).map_paths(lambda path: f"there/{path}").variants
    assert (first.path, first.inputs, first.expected) == ("there/student_fp32.onnx", "there/x.npy", None)
    assert (second.path, second.inputs, second.expected) == ("there/a.xml", "there/y.npy", "there/y.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is 0; use a number above 0."),
        ({"threads": -1}, "threads is -1; use 0 or more."),
        ({"timing_images": 0}, "timing_images is 0; use a number above 0."),
        ({"cold_rounds": -1}, "cold_rounds is -1; use 0 or more."),
        ({"sustained_seconds": -1.0}, "sustained_seconds is -1.0; use 0 or more."),
        ({"throughput": ((0, 1),)}, "throughput has batch 0 and threads 1; use batch >= 1 and threads >= 0."),
        ({"throughput": ((8, -1),)}, "throughput has batch 8 and threads -1; use batch >= 1 and threads >= 0."),
        ({"max_seconds": 1.0}, "max_seconds is 1.0, below min_seconds or warmup_seconds; raise it."),
        ({"variants": ()}, "a plan needs variants with different names, but has none."),
        ({"variants": (VARIANT, VARIANT)}, "a plan needs variants with different names, but has fp32-ort, fp32-ort."),
    ],
)
def test_a_contradictory_plan_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**{"variants": (VARIANT,), **changes})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b"])
def test_a_variant_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="may hold only letters"):
        Variant(name, "onnxruntime", "a.onnx", "fp32", "x.npy")


def test_an_unknown_key_is_refused() -> None:
    values = json.loads(Plan((VARIANT,)).to_json())
    with pytest.raises(PlanError, match=r"the plan cannot be read .*'turbo'"):
        Plan.from_json(json.dumps({**values, "turbo": True}))


@pytest.mark.parametrize("points", [8, [8], [[8]], [[8, 1, 1]], [["8", 1]]])
def test_throughput_points_that_are_no_pairs_are_refused(points: Any) -> None:
    values = json.loads(Plan((VARIANT,)).to_json())
    with pytest.raises(PlanError, match=r"the plan cannot be read"):
        Plan.from_json(json.dumps({**values, "throughput": points}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 3}', '{"schema": 3, "variants": [1]}'])
def test_what_is_no_plan_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("write it again.")
