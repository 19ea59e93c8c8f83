"""ONNX files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.fuzz.judge import Target
from bench.fuzz.mutate import NUMBERS, TEXTS, mutate_bytes
from pipeline.export.structure import check_structure
from pipeline.runtimes import load


def classifier(precision: str) -> onnx.ModelProto:
    """A convolution, a pool and a dense layer with our names, as int8 between quantisers."""
    rng = np.random.default_rng(0)
    kernel, dense = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(4, 3))
    kind = np.float16 if precision == "fp16" else np.float32
    constants = {"axes": np.array([1], np.int64), "shape": np.array([-1, 4], np.int64)}
    nodes = []

    def through(name: str) -> str:
        if precision != "int8":
            return name
        for op, source, target in (
            ("QuantizeLinear", name, f"{name}_q"),
            ("DequantizeLinear", f"{name}_q", f"{name}_dq"),
        ):
            nodes.append(helper.make_node(op, [source, "scale", "zero"], [target], name=f"{op}_{name}"))
        return f"{name}_dq"

    if precision == "int8":
        constants |= {"scale": np.float32(0.1), "zero": np.int8(0)}
    constants |= {"kernel": kernel.astype(kind), "dense": dense.astype(kind)}
    first = "input"
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", ["input"], ["input16"], to=TensorProto.FLOAT16))
        first = "input16"
    inputs = [through(first), through("kernel")]
    nodes.append(helper.make_node("Conv", inputs, ["conv"], name="conv", pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("GlobalAveragePool", ["conv"], ["pooled"]))
    nodes.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))
    operands = [through("flat"), through("dense")]
    last = "logits16" if precision == "fp16" else "logits"
    nodes.append(helper.make_node("Gemm", operands, [last], name="gemm"))
    if precision == "fp16":
        nodes.append(helper.make_node("Cast", [last], ["logits"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("ReduceLogSumExp", ["logits", "axes"], ["energy"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "energykd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("energy", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"labels": '["a", "b", "c"]', "licence": "CC0"})
    return model


def _onnx_seeds(scratch: Path) -> list[tuple[str, onnx.ModelProto]]:
    seeds = [(precision, classifier(precision)) for precision in ("fp32", "fp16", "int8")]
    scratch.mkdir(parents=True, exist_ok=True)
    for precision, model in seeds:
        onnx.checker.check_model(model, full_check=True)
        (scratch / f"{precision}.onnx").write_bytes(model.SerializeToString())
        check_structure(scratch / f"{precision}.onnx", precision)  # a seed that is refused would test nothing
    return seeds


def _write_onnx(rng: random.Random, seeds: list[tuple[str, onnx.ModelProto]], folder: Path) -> None:
    precision, seed = rng.choice(seeds)
    model = onnx.ModelProto()
    model.CopyFrom(seed)
    if rng.randrange(3):
        for _ in range(rng.randint(1, 3)):
            _change_graph(model, rng)
    content = model.SerializeToString()
    if rng.randrange(2):
        content = mutate_bytes(content, rng)
    (folder / f"{precision}.onnx").write_bytes(content)


def _change_graph(model: onnx.ModelProto, rng: random.Random) -> None:  # noqa: PLR0912  one short case a change
    graph = model.graph
    node = rng.choice(graph.node) if graph.node else graph.node.add()
    tensor = rng.choice(graph.initializer) if graph.initializer else graph.initializer.add()
    text = rng.choice(TEXTS).encode("utf-8", "ignore").decode()
    number = max(-(2**63), min(2**63 - 1, int(rng.choice(NUMBERS))))
    match rng.randrange(16):
        case 0:
            node.op_type = rng.choice((text, "Loop", "If", "Conv", "Gemm", "Reshape", "Scan", "MatMul", "Constant"))
        case 1:
            node.domain = rng.choice((text, "com.microsoft", "ai.onnx.ml"))
        case 2:
            del node.input[:]
        case 3:
            del node.output[:]
        case 4:
            node.input.append(rng.choice((text, "logits", "kernel", "energy")))
        case 5:
            entry = model.metadata_props.add()
            entry.key, entry.value = rng.choice(("labels", text)), text
        case 6:
            del tensor.dims[:]
            tensor.dims.extend([number] * rng.randint(0, 4))
        case 7:
            tensor.data_type = rng.choice((0, 7, 8, 16, 22, 99, 2**31 - 1))
        case 8:
            tensor.data_location = TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", rng.choice((text, "../../../../etc/passwd"))
        case 9:
            tensor.raw_data = tensor.raw_data[: rng.randrange(8)]
        case 10:
            node.attribute.append(helper.make_attribute(rng.choice(("pads", "group", "axis", "x")), number))
        case 11:
            inner = node.attribute.add()
            inner.name, inner.type = "body", onnx.AttributeProto.GRAPH
            copied = onnx.GraphProto()  # a graph copied into itself has no end
            copied.CopyFrom(graph)
            inner.g.CopyFrom(copied)
        case 12:
            model.opset_import[0].version = number
        case 13:
            model.ir_version = number
        case 14:
            del graph.output[:]
        case _:
            copied_node = onnx.NodeProto()
            copied_node.CopyFrom(node)
            graph.node.append(copied_node)


def _read_onnx(folder: Path, seeds: Any) -> None:
    (path,) = (folder / "in").glob("*.onnx")
    structure = check_structure(path, path.stem)
    assert set(structure.shares) == {path.stem}, "another precision was let through"


def _open_session(folder: Path, seeds: Any) -> None:
    (path,) = (folder / "in").glob("*.onnx")
    load("onnxruntime", path, precision=path.stem, threads=1)


STRUCTURE = Target("onnx", "ONNX file, by what is in it", _onnx_seeds, _write_onnx, _read_onnx)
SESSION = Target("session", "ONNX file, by ONNX Runtime as a device opens it", _onnx_seeds, _write_onnx, _open_session)
