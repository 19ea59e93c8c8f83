"""The flow around TensorRT, with a double in its place: what is built, kept, trusted, run and reported.

Whether TensorRT builds a right and fast engine, only a machine with a GPU can show.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.runtimes import (
    ModelFileError,
    PrecisionError,
    RuntimesError,
    RuntimeUnavailableError,
    check_executed,
    load,
)
from pipeline.runtimes.tensorrt_runtime import TensorRtRuntime
from tests.runtimes.tensorrt_double import CLASSES, HALF_LAYERS, TensorRtDouble, install


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TensorRtDouble:
    module = TensorRtDouble()
    install(monkeypatch, tmp_path, module)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "student_fp16.onnx"
    path.write_bytes(b"onnx")
    return path


def cached_engine(tmp_path: Path) -> Path:
    [engine] = (tmp_path / "cache").rglob("*.engine")
    return engine


def open_runtime(model: Path, batch: int | None = None, precision: str = "fp16") -> TensorRtRuntime:
    return TensorRtRuntime(model, precision=precision, batch=batch)


def layer(precision: str) -> dict[str, Any]:
    return {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": precision}]}


def test_without_tensorrt_the_sentence_names_the_command(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    sentence = "tensorrt is not installed; install it with `pip install tensorrt`."
    assert TensorRtRuntime.unavailable() == sentence
    with pytest.raises(RuntimeUnavailableError) as caught:
        load("tensorrt", model, precision="fp16")
    assert str(caught.value) == sentence


def test_tensorrt_that_does_not_start_is_one_sentence(fake: TensorRtDouble, model: Path) -> None:
    fake.starts = False
    with pytest.raises(RuntimeUnavailableError) as caught:
        open_runtime(model)
    assert str(caught.value) == (
        "TensorRT 10.3.0 does not start here (CUDA initialization failure with error: 35); "
        "install the one made for driver 560.35.03 cuda 12060."
    )


def test_engine_without_memory_to_run_is_one_sentence(fake: TensorRtDouble, model: Path) -> None:
    fake.has_memory = False
    with pytest.raises(RuntimesError, match=r"no memory to run .*student_fp16\.onnx .*; free some\."):
        open_runtime(model)


# TensorRT gives outputs in its own order; the logits are told by their name.
@pytest.mark.parametrize("outputs", [["energy", "logits"], ["logits", "energy"], ["logits"]])
def test_answers_are_those_of_the_engine(fake: TensorRtDouble, model: Path, outputs: list[str]) -> None:
    fake.outputs = outputs
    images = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    expected = images.reshape(5, -1)[:, :CLASSES]
    runtime = open_runtime(model)
    for count in (5, 2, 2):
        logits, energy = runtime.run(images[:count])
        np.testing.assert_array_equal(logits, expected[:count])
        if "energy" in outputs:
            np.testing.assert_array_equal(energy, expected[:count].sum(axis=1))
        else:
            assert energy is None
    assert fake.executions == [(5, 3, 4, 4), (2, 3, 4, 4), (2, 3, 4, 4)]


@pytest.mark.parametrize("outputs", [["energy", "logits"], ["logits"]])
def test_more_images_than_the_largest_batch_run_in_parts(fake: TensorRtDouble, model: Path, outputs: list[str]) -> None:
    fake.outputs = outputs
    images = np.random.default_rng(0).standard_normal((70, 3, 4, 4)).astype(np.float32)
    expected = images.reshape(70, -1)[:, :CLASSES]
    logits, energy = open_runtime(model).run(images)
    np.testing.assert_array_equal(logits, expected)
    assert (energy is None) == ("energy" not in outputs)
    if energy is not None:
        np.testing.assert_array_equal(energy, expected.sum(axis=1))
    assert [shape[0] for shape in fake.executions] == [64, 6]


def test_image_size_that_the_engine_does_not_take_is_refused(fake: TensorRtDouble, model: Path) -> None:
    runtime = open_runtime(model)
    with pytest.raises(ValueError, match=r"takes no input of shape \[1, 3, 8, 8\]"):
        runtime.run(np.zeros((1, 3, 8, 8), dtype=np.float32))


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 0b11), ("11.4.0.106", 0b1)])
def test_network_is_strongly_typed_in_both_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, version: str, flags: int
) -> None:
    module = TensorRtDouble(version)
    install(monkeypatch, tmp_path, module)
    open_runtime(model)
    [build] = module.builds
    assert build["flags"] == flags
    assert build["cleared"] == [module.BuilderFlag.TF32]
    assert build["verbosity"] == module.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize(("batch", "sizes"), [(None, [1, 8, 64]), (1, [1, 1, 1])])
def test_profile_covers_the_batch_sizes(fake: TensorRtDouble, model: Path, batch: int | None, sizes: list[int]) -> None:
    open_runtime(model, batch)
    [profile] = fake.builds[0]["profiles"]
    assert profile == {"input": [(size, 3, 4, 4) for size in sizes]}


def test_static_network_needs_no_profile(fake: TensorRtDouble, model: Path) -> None:
    fake.image_shape = (2, 3, 4, 4)
    open_runtime(model, 2)
    assert fake.builds[0]["profiles"] == []


def test_second_load_takes_the_engine_from_the_cache(fake: TensorRtDouble, model: Path, tmp_path: Path) -> None:
    first, second = open_runtime(model).executed().detail, open_runtime(model).executed().detail
    assert len(fake.builds) == 1
    assert (first["engine_from_cache"], second["engine_from_cache"]) == (False, True)
    assert first["engine_sha256"] == second["engine_sha256"]
    assert Path(second["engine_path"]) == cached_engine(tmp_path)


@pytest.mark.parametrize("change", ["model", "batch", "version", "gpu", "driver"])
def test_engine_of_other_circumstances_is_not_used(fake: TensorRtDouble, model: Path, change: str) -> None:
    open_runtime(model)
    if change == "model":
        model.write_bytes(b"another onnx")
    elif change == "version":
        fake.__version__ = "10.7.0"
    elif change == "gpu":
        fake.driver.device_name = "Other GPU"
    elif change == "driver":
        fake.driver.driver_version = "570.1 cuda 12080"
    open_runtime(model, 4 if change == "batch" else None)
    assert len(fake.builds) == 2


def test_record_of_an_engine_names_all_that_it_depends_on(fake: TensorRtDouble, model: Path) -> None:
    assert open_runtime(model, 4).executed().detail["key"] == {
        "onnx_sha256": hashlib.sha256(b"onnx").hexdigest(),
        "tensorrt": "10.3.0",
        "gpu": "Test GPU",
        "driver": "560.35.03 cuda 12060",
        "batch": [4, 4, 4],
        "flags": "strongly_typed,no_tf32,detailed",
    }


@pytest.mark.parametrize("damage", ["truncated", "swapped", "no record", "torn record", "record of another engine"])
def test_damaged_engine_is_built_again(fake: TensorRtDouble, model: Path, tmp_path: Path, damage: str) -> None:
    open_runtime(model)
    engine = cached_engine(tmp_path)
    record = engine.with_name(f"{engine.name}.json")
    if damage == "truncated":
        engine.write_bytes(b"pl")
    elif damage == "swapped":
        engine.write_bytes(b"evil")
    elif damage == "no record":
        record.unlink()
    elif damage == "torn record":
        record.write_text(record.read_text(encoding="utf-8")[:20], encoding="utf-8")
    else:
        content = json.loads(record.read_text(encoding="utf-8"))
        content["key"]["gpu"] = "Other GPU"
        record.write_text(json.dumps(content), encoding="utf-8")
    open_runtime(model)
    assert len(fake.builds) == 2
    assert engine.read_bytes() == b"plan"
    open_runtime(model)
    assert len(fake.builds) == 2


def test_engine_that_tensorrt_refuses_is_built_again(fake: TensorRtDouble, model: Path) -> None:
    open_runtime(model)
    fake.refused, fake.plan = {b"plan"}, b"new plan"
    assert open_runtime(model).executed().detail["engine_from_cache"] is False
    assert len(fake.builds) == 2


def test_new_engine_that_tensorrt_refuses_is_one_sentence(fake: TensorRtDouble, model: Path) -> None:
    fake.refused = {b"plan"}
    with pytest.raises(ModelFileError, match=r"cannot load the engine that it built from .*student_fp16\.onnx"):
        open_runtime(model)


def test_cache_holds_no_partial_files(fake: TensorRtDouble, model: Path, tmp_path: Path) -> None:
    open_runtime(model)
    names = {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert names == {".engine", ".json"}


@pytest.mark.parametrize(
    ("asked", "layers", "precision"),
    [
        ("fp16", HALF_LAYERS, "fp16"),
        ("fp32", [layer("Float")], "fp32"),
        (
            "int8",
            [
                layer("Thirty-two wide channel vectorized row major Int8 format"),
                {"LayerType": "Convolution", "Inputs": [{"Format/Datatype": "Int8"}]},
                {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Float"}]},
                {"LayerType": "kgen", "TacticName": "__myl_MulAdd", "Inputs": [{"Format/Datatype": "Float"}]},
            ],
            "mixed:int8=2,fp32=1",
        ),
        (
            "bf16",
            [{"LayerType": "fusion", "TacticName": "sm80_xmma_gemm_bf16", "Inputs": [{"Datatype": "BFloat16"}]}],
            "bf16",
        ),
        (
            "fp16",
            [
                {
                    "Name": "__myl_FcAddMulCastErfCastAddMulMul_myl0_11",
                    "LayerType": "runtime_fusion",
                    "Inputs": [{"Datatype": "Half"}],
                },
                {"Name": "__myl_ConcCast_myl0_1", "LayerType": "kgen", "Inputs": [{"Datatype": "Float"}]},
            ],
            "fp16",
        ),
        ("fp16", [{"LayerType": "gemm", "Inputs": []}], "unknown"),
        ("fp16", ["conv1", "fc"], "unknown"),
        ("fp16", [], "unknown"),
        ("fp16", [layer("Float"), layer("?"), layer("?")], "mixed:unknown=2,fp32=1"),
        ("fp32", [layer("Float"), layer("?")], "mixed:fp32=1,unknown=1"),
        ("fp16", [layer("Float"), layer("Half")], "mixed:fp16=1,fp32=1"),
    ],
)
def test_executed_precision_is_what_the_inspector_says(
    fake: TensorRtDouble, model: Path, asked: str, layers: list[Any], precision: str
) -> None:
    fake.layers = layers
    executed = open_runtime(model, precision=asked).executed()
    assert executed.precision == precision
    assert executed.provider == "tensorrt:Test GPU"
    assert (check_executed(asked, executed) is None) == (precision == asked)
    json.dumps(executed.detail)


@pytest.mark.parametrize(
    ("asked", "layers", "executed"),
    [
        ("fp16", [layer("Float")], "fp32"),
        ("int8", [layer("Half")], "fp16"),
        ("int8", [layer("Int8"), layer("Half"), layer("Half")], "mixed:fp16=2,int8=1"),
        ("fp16", [layer("Float"), layer("Float"), layer("?")], "mixed:fp32=2,unknown=1"),
        ("fp32", [layer("Half")], "fp16"),
        ("fp32", [layer("Float"), layer("Float"), layer("Half")], "mixed:fp32=2,fp16=1"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_precision_that_was_not_executed_is_an_error(
    fake: TensorRtDouble, model: Path, asked: str, layers: list[Any], executed: str, cached: bool
) -> None:
    if cached:
        open_runtime(model)
    fake.layers = layers
    with pytest.raises(PrecisionError) as caught:
        open_runtime(model, precision=asked)
    assert str(caught.value) == (
        f"{model}: {asked} was asked for but tensorrt:Test GPU executed {executed}; "
        "export it again, or request another precision."
    )
    assert len(fake.builds) == 1


@pytest.mark.parametrize(("operator", "where"), [("", ""), ("Gelu", "; node without a name, operator Gelu")])
def test_graph_that_cannot_be_parsed_is_one_sentence(
    fake: TensorRtDouble, model: Path, operator: str, where: str
) -> None:
    fake.parses, fake.operator = False, operator
    with pytest.raises(ModelFileError) as caught:
        open_runtime(model)
    assert str(caught.value) == f"{model} cannot be parsed by TensorRT (In node 3: UNSUPPORTED_NODE{where})."


def test_a_file_without_a_network_is_refused(fake: TensorRtDouble, model: Path) -> None:
    fake.inputs = 0
    with pytest.raises(ModelFileError, match=r"cannot be loaded by TensorRT \(it has 0 inputs and 2 outputs\)"):
        open_runtime(model)


@pytest.mark.parametrize("shape", [(), (-1,), (-1, 3)])
def test_an_input_that_is_no_image_is_refused(fake: TensorRtDouble, model: Path, shape: tuple[int, ...]) -> None:
    fake.image_shape = shape
    with pytest.raises(ModelFileError, match=rf"its input has {len(shape)} axes, not 4"):
        open_runtime(model)


def test_failed_build_names_the_last_error_and_leaves_no_engine(
    fake: TensorRtDouble, model: Path, tmp_path: Path
) -> None:
    fake.plan = None
    with pytest.raises(ModelFileError, match=r"cannot build an engine from .* \(no implementation for node 7\)"):
        open_runtime(model)
    assert list((tmp_path / "cache").rglob("*.engine")) == []


def test_open_image_size_is_refused(fake: TensorRtDouble, model: Path) -> None:
    fake.image_shape = (-1, 3, -1, -1)
    with pytest.raises(ModelFileError, match="leaves the image size open"):
        open_runtime(model)
