"""Latency of teacher and student in torch on the device: eager, and as a CUDA graph where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import models
from bench.gpu.call import Call
from bench.gpu.speed import IMAGE_SIZE, STUDENT, TEACHER
from bench.measure import table
from pipeline.compute import fastest_kernels, full_fp32
from pipeline.device.statistics import percentile, required_samples
from pipeline.device.timing import measure

BATCHES = (1, 64)
CLASSES = 100
PERCENTILES = (0.5, 0.9, 0.99)
_WARMUP, _SECONDS, _MOST_SECONDS = 50, 2.0, 30.0

Forward = Callable[[Tensor], object]


def run(call: Call) -> str:
    """The table; each network is a part."""
    names = ("resnet8",) if call.quick else (TEACHER, STUDENT)
    rows = [row for name in names for row in call.part(name, partial(_measured, name, call))]
    lines = (
        (
            f"{row['network']}, batch {row['batch']}, {row['precision']}, {row['mode']}",
            *("not measured" if row[f"p{p:g}"] is None else f"{row[f'p{p:g}']:.3f}" for p in PERCENTILES),
            f"{1000 * row['batch'] / row['p0.5']:,.0f}",
            str(row["samples"]),
        )
        for row in rows
    )
    head = ("network", *(f"p{100 * p:g}, ms" for p in PERCENTILES), "images/s at p50", "calls")
    body = f"""{IMAGE_SIZE} x {IMAGE_SIZE} pixels, random weights, channels_last, on {call.device.type}. A call is the \
forward pass of a batch that is on the device, and the wait for its end; the clock is the host's.

{table(head, lines)}"""
    return call.report("Latency of teacher and student in torch", body, rows)


@fastest_kernels()
@torch.inference_mode()
def _measured(name: str, call: Call) -> list[dict[str, Any]]:
    precisions = {"fp32": torch.float32}
    modes: dict[str, Callable[[nn.Module, Tensor], Forward]] = {"eager": _eager}
    if call.device.type == "cuda":
        precisions |= {"TF32": torch.float32, "fp16": torch.float16}  # TF32 is what torch does unless told otherwise
        modes["CUDA graph"] = _graphed
    rows = []
    for precision, dtype in precisions.items():
        torch.manual_seed(0)
        network = models.build(name, CLASSES).eval().to(call.device, dtype, memory_format=torch.channels_last)
        for batch in BATCHES:
            images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE).to(
                call.device, dtype, memory_format=torch.channels_last
            )
            for mode, make in modes.items():
                row = {"network": name, "batch": batch, "precision": precision, "mode": mode}
                with full_fp32() if precision == "fp32" else nullcontext():
                    rows.append(row | _timed(make(network, images), images, call))
    return rows


def _timed(forward: Forward, images: Tensor, call: Call) -> dict[str, Any]:
    def once(batch: Any) -> None:
        forward(batch)
        if call.device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2 if call.quick else _WARMUP):
        once(images)
    limits = {"min_seconds": 0.0, "min_count": 70} if call.quick else {"min_seconds": _SECONDS, "min_count": _needed()}
    nanoseconds, _ = measure(once, [images], **limits, max_seconds=_MOST_SECONDS)  # type: ignore[list-item]
    milliseconds = [value / 1e6 for value in nanoseconds]
    return {"samples": len(milliseconds), **{f"p{p:g}": percentile(milliseconds, p).value for p in PERCENTILES}}


def _needed() -> int:
    return required_samples(max(PERCENTILES))


def _eager(network: nn.Module, images: Tensor) -> Forward:
    return network


def _graphed(network: nn.Module, images: Tensor) -> Forward:
    """The forward pass of the very tensor ``images``, captured once and replayed."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what libraries allocate at their first call must not be captured
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = network(images)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return logits

    return replay
