"""The int8 files of a network beside those of others: equal answers, accuracy, latency, size and seconds.

python -m bench.int8 --images FOLDER --network NAME [--checkpoint FILE] [--out docs/results/int8/NAME]

The others are ONNX Runtime's ``quantize_static`` as its documentation has it for CPUs (unsigned activations, signed
weights, one scale per channel) and, if it is installed (`pip install -e .[bench]`), NNCF's preset MIXED in OpenVINO.

FOLDER holds train/<class>/<image> and test/<class>/<image>. The network need not know these classes: accuracy is
compared if it has as many. Without a checkpoint its weights are random, and only latency, size and seconds are
measured. Each int8 file is made once for each draw of calibration images; latency and size are those of the first.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from bench.common import Result, machine_sentence, run, table
from bench.setting import data_params
from pipeline import runtimes
from pipeline.config import Int8Params, ParityParams
from pipeline.data.sources import SourceSplit, open_source
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.runner import run_benchmark
from pipeline.device.benchmark.statistics import compare
from pipeline.energy.groups import energy_score
from pipeline.export.calibration import select
from pipeline.export.capture import capture, deployable, reference_logits
from pipeline.export.graph import from_program, with_energy
from pipeline.export.half_precision import to_fp16
from pipeline.export.int8.quantize import Quantizer
from pipeline.export.parity import check_parity
from pipeline.runtimes.openvino_runtime import openvino_core
from pipeline.store.documents import ImageFormat
from pipeline.store.paths import model_files
from pipeline.training.weights import build_network, load_pretrained
from stages.progress import progress

Images = NDArray[np.float32]

RUNTIMES = ("onnxruntime", "openvino")
BASELINE = "fp32"
_CHUNK = 100
_TEMPERATURE = 4.0
_ANY = ParityParams(images=8, fp32_max_abs=1.0, max_top1_drop=1.0)  # refuses no file for its accuracy
_PLAIN: dict[str, Any] = {"ranges": "minmax", "rounding": False, "bias_correction": False, "weight_bits": "auto"}
# by bits of the weights; 8 overflow on CPUs without VNNI
QUANTIZE_STATIC = {"quantize_static, 7-bit weights": 7, "quantize_static, 8-bit weights": 8}
NNCF = "NNCF"
OURS = "ours"
STEPS: dict[str, dict[str, Any]] = {
    "ours, largest values as ranges": _PLAIN,
    "+ ranges of least error": _PLAIN | {"ranges": "error"},
    "+ biases": _PLAIN | {"ranges": "error", "bias_correction": True},
    OURS: _PLAIN | {"ranges": "error", "rounding": True, "bias_correction": True},
}
SELECTIONS = ("random", "low_energy", "high_energy")
Files = Mapping[str, Path]  # runtime -> the file for it


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.int8", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--network", required=True)
    parser.add_argument("--checkpoint", type=Path, help="weights of the network; default: random, for latency alone")
    parser.add_argument("--classes", type=int, help="of the network; default: those of the folder")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--mean", type=float, nargs=3, default=(0.5071, 0.4867, 0.4408), help="default: CIFAR-100's")
    parser.add_argument("--std", type=float, nargs=3, default=(0.2675, 0.2565, 0.2761))
    parser.add_argument("--calibration", type=int, default=128, help="calibration images; default 128")
    parser.add_argument("--draws", type=int, default=3, help="of calibration images")
    parser.add_argument("--count", type=int, default=2000, help="test images")
    parser.add_argument("--parts", action="store_true", help="also measure our steps one by one, and choices of images")
    parser.add_argument("--rounds", type=int, default=8, help="processes that time a file in a runtime")
    parser.add_argument("--seconds", type=float, default=0.5, help="that each of them times at least")
    parser.add_argument("--threads", type=int, default=1, help="of an inference")
    run(parser, arguments, measure, report)


@dataclass(frozen=True)
class TestImages:
    """Test images [N, 3, H, W], the float32 network's logits for them, and labels if it knows the classes."""

    pixels: Images
    logits: Images
    labels: NDArray[np.int64] | None

    def measured(self, files: Files, precision: str) -> Result:
        """By runtime: executed precision, share of answers as in float32, and paired difference of the accuracy."""
        found: Result = {}
        for name, path in files.items():
            runtime = runtimes.load(name, path, precision=precision)
            chunks = (self.pixels[start : start + _CHUNK] for start in range(0, len(self.pixels), _CHUNK))
            logits = runtimes.joined(runtime.run(chunk) for chunk in chunks).logits
            labels = np.zeros(len(logits), np.int64) if self.labels is None else self.labels
            parity, change = check_parity(path.name, "int8", self.logits, logits, labels, _ANY)
            found[name] = {"agreement": parity.top1_agreement}
            if self.labels is not None:
                found[name]["change"] = vars(change)
            found[name]["executed"] = runtime.executed().precision
        return found


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(options, Path(folder))


def _measure(options: argparse.Namespace, folder: Path) -> Result:
    source = open_source(data_params("imagefolder", options.images, options.image_size))
    network = build_network(options.network, options.classes or len(source.class_names), "--network")
    torch.manual_seed(0)
    if options.checkpoint is not None:
        load_pretrained(network, options.checkpoint)
    else:  # biases of 0 would be optimised away, but only in files whose biases are not corrected
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    twin = deployable(network)
    knows = options.checkpoint is not None and options.classes in (None, len(source.class_names))
    pixels, labels = _spread(source.splits["test"], options.count, options)
    test = TestImages(pixels, reference_logits(twin, pixels, "network"), labels if knows else None)
    candidates, classes = _spread(source.splits["train"], 5000, options)
    logits = torch.from_numpy(reference_logits(twin, candidates, "network"))
    energy = energy_score(logits, _TEMPERATURE).numpy()
    graph = from_program(capture(twin, (3, options.image_size, options.image_size), "network"), 18)
    seconds: dict[str, float] = {}

    def chosen(selection: Any, draw: int) -> Images:
        return candidates[select(classes, energy, min(options.calibration, len(energy)), selection, draw)]

    def common(name: str, model: onnx.ModelProto) -> Files:
        onnx.save(with_energy(model, _TEMPERATURE), path := folder / f"{name}.onnx")
        return dict.fromkeys(RUNTIMES, path)

    def ours(name: str, images: Images, params: Mapping[str, Any]) -> Files:
        quantizer = Quantizer(graph, images, Int8Params(**params))
        return {runtime: common(f"{name} {runtime}", quantizer.graph(runtime).model)[runtime] for runtime in RUNTIMES}

    def int8_files(draw: int) -> Iterator[tuple[str, Callable[[], Files]]]:
        images = chosen("stratified", draw)
        for name, bits in QUANTIZE_STATIC.items():
            yield name, partial(lambda bits: common(f"{bits} {draw}", _quantize_static(graph, images, bits)), bits)
        if importlib.util.find_spec("nncf"):
            yield NNCF, lambda: {"openvino": _nncf(graph, images, folder / f"nncf{draw}.xml")}
        for name, params in STEPS.items() if options.parts else [(OURS, STEPS[OURS])]:
            yield name, partial(ours, f"{name} {draw}", images, params)
        for name in SELECTIONS if options.parts else ():
            yield f"ours, {name} images", partial(ours, f"{name} {draw}", chosen(name, draw), STEPS[OURS])

    made = {BASELINE: (common("fp32", graph), "fp32"), "fp16": (common("fp16", to_fp16(graph)), "fp16")}
    answers = {name: [test.measured(*found)] for name, found in made.items()}
    for draw in range(options.draws):
        for name, make in int8_files(draw):
            begin = time.perf_counter()
            files = make()
            seconds.setdefault(name, (time.perf_counter() - begin) / len(set(files.values())))
            answers.setdefault(name, []).append(test.measured(files, "int8"))
            if draw == 0 and name in (*QUANTIZE_STATIC, NNCF, OURS):
                made[name] = files, "int8"
    return {
        "network": options.network,
        "trained": options.checkpoint is not None,
        "image_size": options.image_size,
        "test_images": len(pixels),
        "top1": float((test.logits.argmax(1) == labels).mean()) if knows else None,
        "draws": options.draws,
        "calibration_images": min(options.calibration, len(energy)),
        "answers": answers,
        "seconds": seconds,
        "latency": _latency(made, candidates[:64], options),
        "rounds": options.rounds,
        "threads": options.threads,
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
    """NNCF's post-training quantisation with asymmetric activations, which it advises for networks without ReLU."""
    import nncf  # noqa: PLC0415  an extra

    model = openvino_core().read_model(with_energy(graph, 4.0).SerializeToString())
    dataset = nncf.Dataset([image[None] for image in images])
    quantized = nncf.quantize(model, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


def _latency(made: Mapping[str, tuple[Files, str]], images: Images, options: argparse.Namespace) -> list[Result]:
    """Latency of one image in interleaved fresh processes, and size: a row per file and runtime.

    Args:
        made: name -> files and precision; ``BASELINE`` among them.
        images: [N, 3, H, W], normalised.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(inputs := Path(folder) / "inputs.npy", images)
        variants, sizes = {}, {}
        for number, (name, (files, precision)) in enumerate(made.items()):
            for runtime, path in files.items():
                sizes[name, runtime] = sum(part.stat().st_size for part in model_files(path))
                variants[name, runtime] = Variant(f"{number}-{runtime}", runtime, str(path), precision, str(inputs))
        limits = {"warmup_seconds": min(0.3, options.seconds), "min_seconds": options.seconds, "min_count": 30}
        plan = Plan(tuple(variants.values()), options.threads, options.rounds, **limits)
        with progress("latency", options.rounds * len(variants), "process") as advance:
            measured, _ = run_benchmark(plan, lambda done, total, label: advance(1) if done else None)
    found = {row.name: row for row in measured.rows}
    rows = []
    for (name, runtime), variant in variants.items():
        row, base = found[variant.name], found[variants[BASELINE, runtime].name]
        entry = {"file": name, "runtime": runtime, "size_bytes": sizes[name, runtime]}
        entry |= {key: getattr(row, key) for key in ("precision_executed", "latency_p50_ms", "verdict", "error")}
        if row.rounds and base.rounds:
            against = compare(*([one.median_ms for one in each.rounds] for each in (row, base)))
            entry |= {"ratio": vars(against.ratio), "pays": against.verdict}
        rows.append(entry)
    return rows


def _spread(split: SourceSplit, count: int, options: argparse.Namespace) -> tuple[Images, NDArray[np.int64]]:
    """``count`` images of a split at even distances, float32 [N, 3, H, W], normalised, and their labels."""
    count = min(count, len(split.labels))
    index = np.arange(count) * len(split.labels) // count
    form = ImageFormat.of(data_params("imagefolder", options.images, options.image_size))
    pixels = np.stack([split.pixels(place, form) for place in index.tolist()])
    normalised = (pixels.astype(np.float32) / 255 - np.float32(options.mean)) / np.float32(options.std)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), split.labels[index]


def report(result: Mapping[str, Any]) -> str:
    latency = {(row["file"], row["runtime"]): row for row in result["latency"]}
    rows = [
        (name, runtime, *_answers([draw[runtime] for draw in draws], result), *_timing(latency.get((name, runtime))))
        for name, draws in result["answers"].items()
        for runtime in RUNTIMES
        if runtime in draws[0]
    ]
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
    weights = "random weights" if not result["trained"] else "trained"
    top1 = "" if result["top1"] is None else f", top-1 {100 * result['top1']:.2f} % in float32"
    head = ("file", "runtime", "executed", "same answers, %", "change of top-1, points", "kB", "p50, ms", "of fp32")
    return f"""# int8 of {result["network"]}, {weights}, {result["image_size"]} pixels

{result["test_images"]:,} test images{top1}. Same answers: as the float32 network, mean and standard deviation over \
{result["draws"]} draws of {result["calibration_images"]} calibration images. Change of top-1: paired, 95 % interval, \
first draw. Latency of one image with {result["threads"]} threads, {result["rounds"]} interleaved rounds of fresh \
processes; of fp32: ratio of the medians in the same runtime, with its interval.

{table(head, rows)}

Seconds to make a file: {seconds}.

{machine_sentence(result["machine"])}

    {result["command"]}
"""


def _answers(draws: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> tuple[str, str, str]:
    if not result["trained"]:
        return draws[0]["executed"], "-", "-"
    shares = [100 * draw["agreement"] for draw in draws]
    spread = f"{statistics.mean(shares):.2f} ± {statistics.stdev(shares) if len(shares) > 1 else 0:.2f}"
    change = {name: 100 * value for name, value in draws[0].get("change", {}).items()}
    text = f"{change['value']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})" if change else "-"
    return draws[0]["executed"], spread, text


def _timing(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "-", "-", "-"
    size, ratio = f"{row['size_bytes'] / 1000:,.1f}", row.get("ratio")
    if ratio is None or row["latency_p50_ms"] is None:
        return size, row["error"] or "-", "-"
    return size, f"{row['latency_p50_ms']:.3f}", f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


if __name__ == "__main__":
    main(sys.argv[1:])
