"""What NVIDIA's builder plans for exported files: layers, their precisions, and kernels that quantise.

python -m bench.tensorrt_plans [--out docs/results/tensorrt_plans]      after `pip install tensorrt-rtx-cu12`; no GPU

The networks have weights as they are drawn. The plans are for the default targets of TensorRT for RTX, unless a target
is named; its log lists their layers. The second table has int8 files with other places of the Q/DQ pairs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch

import models
from bench.common import Result, machine_sentence, run, table
from bench.setting import ROOT
from pipeline import runtimes
from pipeline.config import Params, load_params
from pipeline.export.formats import FORMATS, ExportSource
from pipeline.export.half_precision import to_fp16
from pipeline.export.int8.forms import FORMS, Form
from pipeline.runtimes import ModelFileError, RuntimesError, RuntimeUnavailableError
from pipeline.runtimes.tensorrt_builder import build_engine, make_log
from pipeline.runtimes.tensorrt_layers import judge
from pipeline.runtimes.tensorrt_rtx_runtime import TensorRtRtxRuntime
from pipeline.runtimes.tensorrt_runtime import batch_sizes
from stages.progress import progress

NETWORKS = (
    *(("resnet8", 32), ("wrn_16_1", 32), ("vgg8", 32), ("MobileNetV2", 32), ("ShuffleV2", 32)),
    *(("timm:test_resnet", 64), ("timm:test_byobnet", 64), ("timm:test_efficientnet", 64), ("timm:test_mambaout", 64)),
    *(("timm:test_convnext", 64), ("timm:test_vit", 160), ("timm:test_nfnet", 64)),
)
FILES = (("onnx", "fp32"), ("onnx", "fp16"), ("tensorrt", "int8"))
RESIDUAL = ("resnet8", "wrn_16_1", "MobileNetV2")
OURS = "in front of each layer, as we write them"
PLACES = {
    OURS: FORMS["tensorrt"].between,
    "around additions too": frozenset({"Add"}),
    "around all that is between": FORMS["onnxruntime"].between,
}
HALF = f"{OURS}, float16 between"
TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tensorrt_plans", description=__doc__.splitlines()[0])
    names = [name for name, _ in NETWORKS]
    parser.add_argument("--networks", nargs="+", default=names, choices=names, metavar="NETWORK", help=", ".join(names))
    run(parser, arguments, measure, report, RuntimesError)


def measure(options: argparse.Namespace) -> Result:
    if problem := runtimes.import_problem(TensorRtRtxRuntime.name, TensorRtRtxRuntime.install):
        raise RuntimeUnavailableError(problem)
    tensorrt = importlib.import_module(TensorRtRtxRuntime.name)
    params = load_params(ROOT / "params.yaml")
    chosen = [(name, size) for name, size in NETWORKS if name in options.networks]
    rows: list[Result] = []
    places: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, progress("plans", len(chosen), "network") as advance:
        for name, size in chosen:
            paths = write_files(source(name, size, params), Path(folder))
            rows += [{"network": name, "precision": key, **plan(tensorrt, path)} for key, path in paths.items()]
            if name in RESIDUAL:
                places += [{"network": name, **row} for row in _places(tensorrt, name, size, params, Path(folder))]
            advance(1)
    return {"tensorrt_rtx": tensorrt.__version__, "rows": rows, "places": places}


def source(name: str, size: int, params: Params) -> ExportSource:
    """A network with weights as they are drawn, whose int8 numbers are chosen in the fastest way."""
    torch.manual_seed(0)
    network = models.build(name, 10, shape=(3, size, size)).eval()
    quick = params.export.int8.model_copy(update={"ranges": "minmax", "rounding": False, "bias_correction": False})
    settings = params.export.model_copy(update={"int8": quick})
    images = np.random.default_rng(0).standard_normal((4, 3, size, size)).astype(np.float32)
    return ExportSource(network, "student", settings, 4.0, images, images, np.zeros(4, np.int64))


def write_files(exported: ExportSource, folder: Path) -> dict[str, Path]:
    """Write the files that TensorRT reads, by precision."""
    paths = {precision: folder / f"{precision}{FORMATS[form].suffix}" for form, precision in FILES}
    for form, precision in FILES:
        FORMATS[form].write(exported, precision, paths[precision], {})
    return paths


def plan(tensorrt: Any, path: Path, target: str | None = None) -> Result:
    """Count the layers of a plan, or tell the error of the builder."""

    def configure(config: Any) -> None:
        if target is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(tensorrt.ComputeCapability.__members__[target], 0)

    log = make_log(tensorrt)
    try:
        build_engine(tensorrt, path, batch_sizes(None), log, configure)
    except ModelFileError:
        return {"error": log.last_error()}
    layers = log.layers()
    judged = judge(layers)
    computing = dict(judged.compute)
    writes_int8 = {layer["Name"]: any(each["Datatype"] == "Int8" for each in layer["Outputs"]) for layer in layers}
    return {
        "layers": judged.count,
        "unclear": len(judged.unclear),
        "compute": dict(Counter(judged.precisions)),
        "int8_writes_int8": sum(writes_int8[name] for name, precision in judged.compute if precision == "int8"),
        "quantising": sum(writes for name, writes in writes_int8.items() if name not in computing),
    }


def _places(tensorrt: Any, name: str, size: int, params: Params, folder: Path) -> list[Result]:
    """Rows of the int8 file with pairs at other places, with float16 between its layers, and for each target."""
    rows, path = [], folder / "places.onnx"
    # with opset 19, scales may be float16
    settings = params.model_copy(update={"export": params.export.model_copy(update={"opset": 19})})

    def add(place: str, target: str | None = None) -> None:
        pairs = sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
        rows.append({"place": place, "target": target, "pairs": pairs, **plan(tensorrt, path, target)})

    for place, between in PLACES.items():
        with patch.dict(FORMS, {"tensorrt": Form(between, signed="always", int32_bias=False)}):
            FORMATS["tensorrt"].write(source(name, size, settings), "int8", path, {})
        add(place)
        if place == OURS:
            for target in TARGETS:
                add(place, target)
            onnx.save(to_fp16(onnx.load(path)), path)
            add(HALF)
    return rows


def report(result: Mapping[str, Any]) -> str:
    head = ("layers", "compute layers", "int8 layers that write int8", "other kernels that write int8")
    files = table(("file", *head), ((f"{row['network']}, {row['precision']}", *_cells(row)) for row in result["rows"]))
    places = table(
        ("int8 file", "Q/DQ pairs", *head), ((_place(row), row["pairs"], *_cells(row)) for row in result["places"])
    )
    refused = "".join(f"\nRefused, {_place(row)}: {row['error']}\n" for row in result["places"] if "error" in row)
    return f"""# Plans of TensorRT for RTX {result["tensorrt_rtx"]}

Built without a GPU: the layers are those that the builder's log lists. Nothing was run, so nothing here is a latency.

{files}

Places of the Q/DQ pairs of int8 files:

{places}
{refused}
{machine_sentence(result["machine"])}

    {result["command"]}
"""


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['network']}: {row['place']}" + (f", for {row['target']}" if row["target"] else "")


def _cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if "error" in row:
        return "refused", "-", "-", "-"
    compute = ", ".join(f"{precision} {count}" for precision, count in sorted(row["compute"].items()))
    return row["layers"], compute, row["int8_writes_int8"], row["quantising"]


if __name__ == "__main__":
    main(sys.argv[1:])
