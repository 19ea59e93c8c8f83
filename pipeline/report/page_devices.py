"""The devices of the page: a table that shows them side by side, and a section for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.report import formatting
from pipeline.report.compare import compare, round_medians, verdict_sentence
from pipeline.report.devices import OnDevice
from pipeline.report.figure import inline
from pipeline.report.formatting import accuracy_decimals, flatten, runtime
from pipeline.report.notes import Notes
from pipeline.report.sustained import sustained_plot

Json = Mapping[str, Any]
Row = Mapping[str, Any]


def device_sections(devices: Sequence[OnDevice]) -> list[dict[str, Any]]:
    """What the template shows of each device."""
    return [_section(found) for found in devices]


def _section(found: OnDevice) -> dict[str, Any]:
    entry, rows = found.entry, found.rows
    of_rows = [passes(row) for row in found.measured]
    return {
        **entry,
        "rows": rows,
        "notes": Notes.of(rows),
        "sentence": _sentence(found),
        "chosen": found.recommendation.row,
        "limits": [pair for pair in flatten(entry["budget"]) if pair[1] != formatting.NOT_MEASURED],
        "machine": [
            pair
            for pair in flatten({**entry["provenance"], "changed while measuring": entry["tuning"]})
            if pair[1] != formatting.NOT_MEASURED
        ],
        "settings": flatten(entry["settings"]),
        "settings_images": entry["settings"].get("images"),
        "passes": of_rows,
        "show_passes": has_passes(of_rows),
        "sustained": sustained_figure(found.measured, entry["name"]),
        "left_out": entry["notes"],
    }


def _sentence(found: OnDevice) -> str:
    row = found.recommendation.row
    if row is None:
        return f"No file is recommended for it: {found.entry['not_recommended']}."
    if not any(other["role"] == "teacher" for other in found.rows):
        latency = formatting.milliseconds(row["latency_p50_ms"])
        return f"Deploy {row['name']} with {runtime(row['runtime'])}: {latency} ms at the median."
    rounds = round_medians({"rows": found.measured})
    comparison = compare(row, found.rows, images=row["images"], rounds=rounds)
    return verdict_sentence(row, comparison, accuracy_decimals(row["images"]))


def passes(row: Json) -> dict[str, Any]:
    """What was measured of a row besides latency, for a table: milliseconds, bytes, millijoules; None where it was not.

    Args:
        row: of reports/benchmark.json or of a device's result.json.
    """
    cold, memory, sustained = (row.get(key) or {} for key in ("cold", "memory", "sustained"))
    joules = row.get("joules_per_inference")
    return {
        "name": row["name"],
        "runtime": row["runtime"],
        **{key: cold.get(key) for key in ("import_ms", "load_ms", "first_inference_ms", "dropped_cache")},
        **{key: _bytes(memory.get(f"{key}_kb")) for key in ("peak_rss", "model_rss")},
        "millijoules": None if joules is None else 1000 * joules,
        "meter": row.get("meter"),
        "sustained_ms": sustained.get("plateau_ms"),
        "ended_by": sustained.get("ended_by"),
        "throughput": row.get("throughput") or [],
    }


def has_passes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of :func:`passes` has a number."""
    return any(value not in (None, []) for row in rows for key, value in row.items() if key not in ("name", "runtime"))


def _bytes(kibibytes: float | None) -> float | None:
    return None if kibibytes is None else 1024 * kibibytes


def sustained_figure(rows: Sequence[Json], name: str) -> Markup | None:
    """The curve of the latency under load that goes on; None if none was measured."""
    plot = sustained_plot(rows, name)
    return None if plot is None else Markup(inline(plot))  # noqa: S704  our own SVG, its text is outlines


def side_by_side(rows: Sequence[Row], devices: Sequence[OnDevice]) -> list[dict[str, Any]]:
    """Median latency of each file and runtime on this machine and on each device, with the verdict."""
    shown = [rows, *(found.rows for found in devices)]
    columns = [[row for row in column if row["latency_p50_ms"] is not None] for column in shown]
    keys = dict.fromkeys((row["name"], row["runtime"]) for column in columns for row in column)
    cells = [{(row["name"], row["runtime"]): row for row in column} for column in columns]
    return [{"name": key[0], "runtime": key[1], "cells": [column.get(key) for column in cells]} for key in keys]
