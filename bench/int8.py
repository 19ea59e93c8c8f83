"""How far the int8 files are from their network, and how fast: beside those of others, step by step, and by the images.

python -m bench.int8 --images FOLDER --network NAME --checkpoint FILE --classes K [--out docs/results/int8]

The others are ONNX Runtime's ``quantize_static`` as its documentation has it for CPUs (unsigned activations, signed
weights, one scale per channel) and, if it is installed (`pip install -e .[bench]`), NNCF's defaults in OpenVINO.

FOLDER holds train/<class>/<image> and test/<class>/<image>; the network need not know these classes, as only its
answers in float32 and in int8 are compared. All figures are of one run; each int8 file is made once for each draw of
calibration images and measured in both runtimes. Latency and size are those of the files of the first draw.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
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
from pipeline.export.int8.quantize import Quantizer
from pipeline.runtimes.openvino_runtime import openvino_core
from pipeline.store.paths import model_files
from pipeline.training.weights import build_network, load_pretrained
from stages.common import progress

Images = NDArray[np.float32]

CALIBRATION_IMAGES = 128
RUNTIMES = ("onnxruntime", "openvino")
_CHUNK = 100
_PLAIN: dict[str, Any] = {"ranges": "minmax", "rounding": False, "bias_correction": False, "weight_bits": "auto"}
# by bits of the weights; 8 overflow on CPUs without VNNI
QUANTIZE_STATIC = {"quantize_static, 7-bit weights": 7, "quantize_static, 8-bit weights": 8}
NNCF = "NNCF"
STEPS: dict[str, dict[str, Any]] = {
    "ours, largest values as ranges": _PLAIN,
    "+ ranges of least error": _PLAIN | {"ranges": "error"},
    "+ biases": _PLAIN | {"ranges": "error", "bias_correction": True},
    "+ rounding, as shipped": _PLAIN | {"ranges": "error", "rounding": True, "bias_correction": True},
}
SHIPPED = list(STEPS)[-1]
Files = Mapping[str, Path]  # runtime -> the file for it
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
    with tempfile.TemporaryDirectory() as folder:
        return _measure(options, Path(folder))


def _measure(options: argparse.Namespace, folder: Path) -> Result:
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
    seconds: dict[str, float] = {}

    def chosen(selection: Any, draw: int) -> Images:
        return candidates[select(labels, energy, calibration, selection, draw)]

    def common(name: str, model: onnx.ModelProto) -> Files:
        onnx.save(with_energy(model, 4.0), path := folder / f"{name}.onnx")
        return dict.fromkeys(RUNTIMES, path)

    def ours(name: str, images: Images, params: Mapping[str, Any]) -> Files:
        quantizer = Quantizer(graph, images, Int8Params(**params))
        return {runtime: common(f"{name} {runtime}", quantizer.graph(runtime).model)[runtime] for runtime in RUNTIMES}

    def peers(images: Images, draw: int) -> dict[str, Files]:
        made: dict[str, Files] = {}
        for name, bits in QUANTIZE_STATIC.items():
            begin = time.perf_counter()
            made[name] = common(f"{name} {draw}", _quantize_static(graph, images, bits))
            seconds[name] = time.perf_counter() - begin
        if importlib.util.find_spec("nncf"):
            begin = time.perf_counter()
            made[NNCF] = {"openvino": _nncf(graph, images, folder / f"nncf{draw}.xml")}
            seconds[NNCF] = time.perf_counter() - begin
        return made

    made = {BASELINE: (common("fp32", graph), "fp32"), "fp16": (common("fp16", to_fp16(graph)), "fp16")}
    files = {name: _measured(*found, sets, references) for name, found in made.items()}
    steps: dict[str, list[Result]] = {}
    selections: dict[str, list[Result]] = {name: [] for name in SELECTIONS}
    with progress("int8", options.draws * (1 + len(STEPS) + len(SELECTIONS)), "file") as advance:
        for draw in range(options.draws):
            images = chosen("stratified", draw)
            found = peers(images, draw)
            advance(1)
            for name, params in STEPS.items():
                begin = time.perf_counter()
                found[name] = ours(f"{name} {draw}", images, params)
                seconds[name] = (time.perf_counter() - begin) / len(RUNTIMES)
                advance(1)
            for name, of_runtimes in found.items():
                steps.setdefault(name, []).append(_measured(of_runtimes, "int8", sets, references))
                if draw == 0 and name not in list(STEPS)[:-1]:
                    made[name] = of_runtimes, "int8"
            for selection in SELECTIONS:
                of_runtimes = ours(f"{selection} {draw}", chosen(selection, draw), STEPS[SHIPPED])
                selections[selection].append(_measured(of_runtimes, "int8", sets, references))
                advance(1)
    return {
        "draws": options.draws,
        "calibration_images": calibration,
        "files": files,
        "steps": steps,
        "seconds": seconds,
        "selections": selections,
        "latency": _latency(made, candidates[:64], options.rounds, options.seconds),
        "rounds": options.rounds,
    }


def _quantize_static(graph: onnx.ModelProto, images: Images, weight_bits: int) -> onnx.ModelProto:
    """As ONNX Runtime's documentation recommends for x86 CPUs, all other settings as they are."""

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
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantized)


def _nncf(graph: onnx.ModelProto, images: Images, path: Path) -> Path:
    """NNCF's post-training quantisation with its defaults."""
    import nncf  # noqa: PLC0415  an extra

    model = openvino_core().read_model(with_energy(graph, 4.0).SerializeToString())
    dataset = nncf.Dataset([image[None] for image in images])
    openvino.save_model(nncf.quantize(model, dataset, subset_size=len(images)), path, compress_to_fp16=False)
    return path


def _measured(files: Files, precision: str, sets: Mapping[str, Images], references: Mapping[str, Images]) -> Result:
    """By runtime: the executed precision, and by set the share of equal answers and the largest logit difference."""
    found: Result = {}
    for name, path in files.items():
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


def _latency(made: Mapping[str, tuple[Files, str]], images: Images, rounds: int, seconds: float) -> list[Result]:
    """Latency of one image in interleaved fresh processes, and size: a row per file and runtime.

    Args:
        made: name -> files and precision; ``BASELINE`` among them.
        images: [N, 3, H, W], normalised.
        rounds: processes for each file and runtime.
        seconds: that each of them measures at least.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(inputs := Path(folder) / "inputs.npy", images)
        variants, sizes = {}, {}
        for number, (name, (files, precision)) in enumerate(made.items()):
            for runtime, path in files.items():
                sizes[name, runtime] = sum(part.stat().st_size for part in model_files(path))
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
        entry = {
            "file": name,
            "runtime": runtime,
            "size_bytes": sizes[name, runtime],
            "executed": row.precision_executed,
        }
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
        values = [100 * draw[runtime][key]["agreement"] for draw in draws if runtime in draw]
        if not values:
            return "-"
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
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in result["seconds"].items())
    return f"""# What int8 changes

Answers equal to the float32 network's, in %; in parentheses the largest difference of a logit.

{table(("file", *head), files)}

int8, mean and standard deviation over {result["draws"]} draws of {result["calibration_images"]} calibration images, \
stratified over class and energy:

{table(("int8", *head), rows["steps"])}

Executed, as shipped: {executed}. Seconds to make a file: {seconds}.

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
