"""How far the int8 file is from its network: against plain quantisation, step by step, and by the calibration images.

python -m bench.int8 --images FOLDER --network NAME --checkpoint FILE --classes K [--out docs/results/int8]

FOLDER holds train/<class>/<image> and test/<class>/<image>; the network need not know these classes, as only its
answers in float32 and in int8 are compared. All figures are of one run; each int8 file is made once for each draw of
calibration images and measured in both runtimes. Latency and size are those of the files of the first draw.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from bench.common import Result, machine_sentence, run, span, table
from bench.setting import data_params
from pipeline import runtimes
from pipeline.config import Int8Params
from pipeline.data.image_files import decode_at
from pipeline.data.sources import open_source
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.runner import run_benchmark
from pipeline.device.benchmark.statistics import compare
from pipeline.energy.groups import energy_score
from pipeline.export.calibration import select
from pipeline.export.capture import capture, deployable, reference_logits
from pipeline.export.graph import from_program, with_energy
from pipeline.export.half_precision import to_fp16
from pipeline.export.int8.quantize import to_int8
from pipeline.training.weights import build_network, load_pretrained
from stages.common import progress

Images = NDArray[np.float32]

CALIBRATION_IMAGES = 128
RUNTIMES = ("onnxruntime", "openvino")
_CHUNK = 100
_PLAIN = {"ranges": "minmax", "rounding": False, "bias_correction": False, "float_share": 0.0}
# by bits of the weights: as ours have, for CPUs without VNNI, and as the documentation has
PLAIN = {"plain, 7-bit weights": 7, "plain, 8-bit weights": 8}
STEPS: dict[str, dict[str, Any]] = {
    "ours, largest values as ranges": _PLAIN,
    "+ ranges of least error": _PLAIN | {"ranges": "error"},
    "+ biases": _PLAIN | {"ranges": "error", "bias_correction": True},
    "+ rounding": {"ranges": "error", "rounding": True, "bias_correction": True, "float_share": 0.0},
    "+ layers in fp32, as shipped": {"ranges": "error", "rounding": True, "bias_correction": True, "float_share": 0.1},
}
SHIPPED = list(STEPS)[-1]
# file whose latency is measured -> step that it was made with
TIMED = {"int8": SHIPPED, "int8, no layer in fp32": list(STEPS)[-2]}
SELECTIONS = ("stratified", "random", "low_energy", "high_energy")
BASELINE = "fp32"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.int8", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--network", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--classes", type=int, required=True, help="of the network")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--mean", type=float, nargs=3, default=(0.5071, 0.4867, 0.4408), help="default: CIFAR-100's")
    parser.add_argument("--std", type=float, nargs=3, default=(0.2675, 0.2565, 0.2761))
    parser.add_argument("--draws", type=int, default=5, help="of calibration images")
    parser.add_argument(
        "--count", type=int, default=500, help="test images of the first set; four times as many others"
    )
    parser.add_argument("--rounds", type=int, default=8, help="processes that time a file in a runtime")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each of them times at least")
    run(parser, arguments, measure, report)


def measure(options: argparse.Namespace) -> Result:
    network = build_network(options.network, options.classes, "--network")
    load_pretrained(network, options.checkpoint)
    twin = deployable(network)
    splits = open_source(data_params("imagefolder", options.images, options.image_size)).splits
    train, test = ((*(splits[name].paths or ()),) for name in ("train", "test"))
    stride = max(1, len(test) // options.count)
    first = test[::stride][: options.count]
    others = [path for path in test if path not in set(first)]
    spread = np.linspace(0, len(others) - 1, min(4 * options.count, len(others))).astype(int)
    sets = {
        f"{len(first):,} at stride {stride}": _read(first, options),
        f"{len(spread):,} others": _read([others[place] for place in spread], options),
    }
    references = {name: reference_logits(twin, images, "network") for name, images in sets.items()}
    pool = train[:: max(1, len(train) // 5000)]
    candidates = _read(pool, options)
    energy = energy_score(torch.from_numpy(reference_logits(twin, candidates, "network")), 4.0).numpy()
    labels = np.unique([path.parent.name for path in pool], return_inverse=True)[1]
    graph = from_program(capture(twin, options.image_size, "network"), 18)
    calibration = min(CALIBRATION_IMAGES, len(pool))

    def chosen(selection: Any, draw: int) -> Images:
        return candidates[select(labels, energy, calibration, selection, draw)]

    def measured(model: onnx.ModelProto, precision: str = "int8") -> Result:
        return _measured(with_energy(model, 4.0), precision, sets, references)

    made = {BASELINE: (graph, "fp32"), "fp16": (to_fp16(graph), "fp16")}
    files = {name: measured(*found) for name, found in made.items()}
    steps: dict[str, list[Result]] = {name: [] for name in (*PLAIN, *STEPS)}
    selections: dict[str, list[Result]] = {name: [] for name in SELECTIONS}
    kept: set[tuple[str, ...]] = set()
    with progress("int8", options.draws * (len(STEPS) + len(SELECTIONS)), "file") as advance:
        for draw in range(options.draws):
            images = chosen("stratified", draw)
            for name, weight_bits in PLAIN.items():
                steps[name].append(measured(_plain(graph, images, weight_bits)))
            for name, params in STEPS.items():
                quantized = to_int8(graph, images, Int8Params(**params))
                steps[name].append(measured(quantized.model))
                if draw == 0:
                    made |= {file: (quantized.model, "int8") for file, step in TIMED.items() if step == name}
                advance(1)
            kept.add(quantized.fp32_layers)
            for selection in SELECTIONS:
                quantized = to_int8(graph, chosen(selection, draw), Int8Params(**STEPS[SHIPPED]))
                selections[selection].append(measured(quantized.model))
                advance(1)
    timed = {name: (with_energy(model, 4.0), precision) for name, (model, precision) in made.items()}
    return {
        "draws": options.draws,
        "calibration_images": calibration,
        "files": files,
        "steps": steps,
        "selections": selections,
        "fp32_layers": sorted(map(list, kept)),
        "latency": _latency(timed, candidates[:64], options.rounds, options.seconds),
        "rounds": options.rounds,
    }


def _plain(graph: onnx.ModelProto, images: Images, weight_bits: int) -> onnx.ModelProto:
    """Symmetric min-max quantisation as ONNX Runtime's documentation shows it, one scale per channel of weights."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._chunks = iter([{"input": images[start : start + 32]} for start in range(0, len(images), 32)])

        def get_next(self) -> dict[str, Images] | None:
            return next(self._chunks, None)

    with tempfile.TemporaryDirectory() as folder:
        original, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
        onnx.save(graph, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=weight_bits < 8,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
        return onnx.load(quantized)


def _measured(
    model: onnx.ModelProto, precision: str, sets: Mapping[str, Images], references: Mapping[str, Images]
) -> Result:
    """By runtime: the executed precision, and by set the share of equal answers and the largest logit difference."""
    found: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, path := Path(folder) / "model.onnx")
        for name in RUNTIMES:
            runtime = runtimes.load(name, path, precision=precision)
            found[name] = {}
            for key, images in sets.items():
                chunks = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
                logits = runtimes.joined(runtime.run(chunk) for chunk in chunks).logits
                found[name][key] = {
                    "agreement": float((logits.argmax(1) == references[key].argmax(1)).mean()),
                    "max_abs": float(np.abs(logits - references[key]).max()),
                }
            found[name]["executed"] = runtime.executed().precision
    return found


def _latency(
    models: Mapping[str, tuple[onnx.ModelProto, str]], images: Images, rounds: int, seconds: float
) -> list[Result]:
    """Latency of one image in interleaved fresh processes, and size: a row per file and runtime.

    Args:
        models: file -> model and precision; ``BASELINE`` among them.
        images: [N, 3, H, W], normalised.
        rounds: processes for each file and runtime.
        seconds: that each of them measures at least.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(inputs := Path(folder) / "inputs.npy", images)
        variants, sizes = {}, {}
        for number, (name, (model, precision)) in enumerate(models.items()):
            onnx.save(model, path := Path(folder) / f"{number}.onnx")
            sizes[name] = path.stat().st_size
            for runtime in RUNTIMES:
                variants[name, runtime] = Variant(f"{number}-{runtime}", runtime, str(path), precision)
        limits = {"warmup_seconds": min(0.3, seconds), "min_seconds": seconds, "min_count": 100}
        plan = Plan(tuple(variants.values()), str(inputs), rounds=rounds, **limits)
        with progress("latency", rounds * len(variants), "process") as advance:
            measured, _ = run_benchmark(plan, lambda done, total, label: advance(1) if done else None)
    found = {row.name: row for row in measured.rows}
    rows = []
    for (name, runtime), variant in variants.items():
        row, base = found[variant.name], found[variants[BASELINE, runtime].name]
        keys = ("latency_p50_ms", "latency_p90_ms", "latency_ci_low_ms", "latency_ci_high_ms", "verdict", "error")
        entry = {"file": name, "runtime": runtime, "size_bytes": sizes[name], "executed": row.precision_executed}
        entry |= {key: getattr(row, key) for key in keys}
        if name != BASELINE and row.rounds and base.rounds:
            against = compare(*([one.median_ms for one in each.rounds] for each in (row, base)))
            ratio = against.ratio
            entry |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high, "pays": against.verdict}
        rows.append(entry)
    return rows


def _read(paths: Sequence[Path], options: argparse.Namespace) -> Images:
    """Float32 [N, 3, S, S], normalised."""
    pixels = np.stack([decode_at(path, options.image_size) for path in paths])
    normalised = (pixels.astype(np.float32) / 255 - np.float32(options.mean)) / np.float32(options.std)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def report(result: Mapping[str, Any]) -> str:
    sets = [key for key in result["files"][BASELINE][RUNTIMES[0]] if key != "executed"]
    columns = [(runtime, key) for runtime in RUNTIMES for key in sets]
    head = [f"{runtime}, {key}" for runtime, key in columns]

    def spread(draws: Sequence[Mapping[str, Any]], runtime: str, key: str) -> str:
        values = [100 * draw[runtime][key]["agreement"] for draw in draws]
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"

    files = [
        (name, *(f"{100 * found[r][key]['agreement']:.2f} ({found[r][key]['max_abs']:.1e})" for r, key in columns))
        for name, found in result["files"].items()
    ]
    rows = {
        part: [(name, *(spread(draws, *column) for column in columns)) for name, draws in result[part].items()]
        for part in ("steps", "selections")
    }
    latency = table(
        ("file", "runtime", "executed", "kB", "p50, ms", "interval of the median", "of fp32", "verdict"),
        [
            (
                row["file"],
                row["runtime"],
                row["executed"] or row["error"],
                f"{row['size_bytes'] / 1000:,.0f}",
                *_milliseconds(row),
                f"{row['ratio']:.2f} ({span((row['ratio_low'], row['ratio_high']), '.2f')}), {row['pays']}"
                if "ratio" in row
                else "-",
                row["verdict"] or "-",
            )
            for row in result["latency"]
        ],
    )
    executed = ", ".join(f"{name} {result['steps'][SHIPPED][0][name]['executed']}" for name in RUNTIMES)
    kept = "; ".join(", ".join(layers) for layers in result["fp32_layers"])
    return f"""# What int8 changes

Answers equal to the float32 network's, in %, of the same file in both runtimes; in parentheses the largest \
difference of a logit.

{table(("file", *head), files)}

int8, mean and standard deviation over {result["draws"]} draws of {result["calibration_images"]} calibration images, \
stratified over class and energy:

{table(("int8", *head), rows["steps"])}

Executed, as shipped: {executed}. In fp32: {kept}.

The last row by how the calibration images are chosen, {result["draws"]} draws each:

{table(("calibration images", *head), rows["selections"])}

Latency of one image and size of the files of the first draw, {result["rounds"]} interleaved rounds of fresh \
processes; of fp32: ratio of the medians in the same runtime:

{latency}

{machine_sentence(result["machine"])}

    {result["command"]}
"""


def _milliseconds(row: Mapping[str, Any]) -> tuple[str, str]:
    low, high = row["latency_ci_low_ms"], row["latency_ci_high_ms"]
    median = "-" if row["latency_p50_ms"] is None else f"{row['latency_p50_ms']:.3f}"
    return median, "-" if low is None else span((low, high), ".3f")


if __name__ == "__main__":
    main(sys.argv[1:])
