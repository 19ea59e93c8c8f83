"""Which training images set the int8 ranges: chosen, hashed and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Int8Params
from pipeline.errors import ExportError
from pipeline.store.tables import write_json


def select(
    labels: NDArray[np.int64],
    energy: NDArray[np.floating],
    count: int,
    selection: Literal["stratified", "random", "low_energy", "high_energy"],
    seed: int,
) -> NDArray[np.int64]:
    """Choose ``count`` of N images; returns their indices, ascending, int64 [count].

    ``stratified`` gives every class its share of the images, at least one where ``count`` allows it, and within a class
    takes one from each of as many equal parts of the ranks of the energy, so that certain and uncertain images are
    represented as they occur; the seed shifts all ranks within their parts, and 0 takes the middles. ``random`` draws
    without replacement; ``low_energy`` and ``high_energy`` do so from the fifth of the images with the lowest or
    highest energy, or from ``count`` of them if that is more.

    Args:
        labels: int [N].
        energy: float [N].
        seed: of the draw.

    Raises:
        ExportError: fewer than ``count`` images.
        ValueError: labels and energy differ in length, or the selection is unknown.
    """
    if labels.shape != energy.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and energy {energy.shape} must be two lists of the same length")
    if count > len(labels):
        raise ExportError(
            f"export.calibration.images is {count}, but the training split has {len(labels)} images; lower it"
        )
    generator = np.random.default_rng(seed)
    if selection in {"random", "low_energy", "high_energy"}:
        ranked = np.argsort(energy, kind="stable")
        fifth = max(count, len(ranked) // 5)
        pool = {"random": ranked, "low_energy": ranked[:fifth], "high_energy": ranked[len(ranked) - fifth :]}[selection]
        return np.sort(generator.choice(np.sort(pool), count, replace=False)).astype(np.int64)
    if selection != "stratified":
        raise ValueError(f"selection {selection!r} is not one of stratified, random, low_energy, high_energy")
    place = 0.5 if seed == 0 else float(generator.random())
    order = np.lexsort((energy, labels))  # by class, then energy; ties keep their order
    sizes = np.unique(labels, return_counts=True)[1]
    if count < len(sizes):
        return np.sort(order[_even_ranks(len(order), count, place)]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    ranks = [
        start + _even_ranks(size, share, place)
        for start, size, share in zip(starts, sizes, _shares(sizes, count), strict=True)
    ]
    return np.sort(order[np.concatenate(ranks)]).astype(np.int64)


def write_record(
    path: Path,
    indices: NDArray[np.int64],
    *,
    selection: str,
    seed: int,
    int8: Int8Params,
    lineage: Mapping[str, str],
) -> None:
    """Write as JSON what the int8 numbers come from.

    Args:
        indices: of the chosen images in the training split; their little-endian int64 bytes are hashed, SHA-256.
        int8: how the numbers were chosen with them.
        lineage: hashes of the data and the energies that the images were chosen by.
    """
    write_json(
        path,
        {
            "schema": 1,
            "lineage": dict(lineage),
            "selection": selection,
            "seed": seed,
            "int8": int8.model_dump(),
            "images": len(indices),
            "sha256": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
            "indices": indices.tolist(),
        },
    )


def _even_ranks(size: int, count: int, place: float) -> NDArray[np.int64]:
    """``count`` different ranks, at the same ``place`` (0 <= place < 1) of as many equal parts of range(size)."""
    return np.floor((np.arange(count) + place) * size / max(count, 1)).astype(np.int64)


def _shares(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """One image per class, the rest in proportion to what each class has left, by largest remainders."""
    rest, left = count - len(sizes), int(sizes.sum()) - len(sizes)
    if rest == 0:
        return np.ones_like(sizes)
    exact, remainder = np.divmod((sizes - 1) * rest, left)
    shares = 1 + exact
    missing = count - int(shares.sum())
    shares[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return shares
