"""Choice of the calibration images, which set the int8 quantisation scales."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def select(
    labels: NDArray[np.int64],
    energy: NDArray[np.floating],
    count: int,
    selection: Literal["stratified", "random", "low_energy", "high_energy"],
    seed: int,
) -> NDArray[np.int64]:
    """Choose ``count`` of N images (all if N is smaller); return their int64 indices in ascending order.

    ``stratified`` chooses images of each class in proportion to the class size, at least one if ``count`` allows it.
    It sorts the images of a class by energy, splits them into equal bins and takes one image from each bin: the middle
    one for seed 0, else the one at a random position, the same in all bins. ``random`` draws without replacement.
    ``low_energy`` and ``high_energy`` draw from the fifth of the images with the lowest or highest energy, or from
    ``count`` images if ``count`` is larger.

    Args:
        labels, energy: [N].
    """
    count = min(count, len(labels))
    generator = np.random.default_rng(seed)
    if selection != "stratified":
        ranked = np.argsort(energy, kind="stable")
        fifth = max(count, len(ranked) // 5)
        pool = {"random": ranked, "low_energy": ranked[:fifth], "high_energy": ranked[len(ranked) - fifth :]}[selection]
        return np.sort(generator.choice(np.sort(pool), count, replace=False)).astype(np.int64)
    position = 0.5 if seed == 0 else float(generator.random())
    order = np.lexsort((energy, labels))  # by class, then energy; ties keep their order
    sizes = np.unique(labels, return_counts=True)[1]
    if count < len(sizes):
        return np.sort(order[_even_ranks(len(order), count, position)]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    ranks = [
        start + _even_ranks(size, share, position)
        for start, size, share in zip(starts, sizes, _shares(sizes, count), strict=True)
    ]
    return np.sort(order[np.concatenate(ranks)]).astype(np.int64)


def _even_ranks(size: int, count: int, position: float) -> NDArray[np.int64]:
    """Split range(size) into ``count`` bins; return the rank at ``position`` (0 <= position < 1) of each bin."""
    return np.floor((np.arange(count) + position) * size / max(count, 1)).astype(np.int64)


def _shares(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Images per class: one each, the others in proportion to the class sizes minus one (largest remainders)."""
    others, candidates = count - len(sizes), int(sizes.sum()) - len(sizes)
    if others == 0:
        return np.ones_like(sizes)
    exact, remainder = np.divmod((sizes - 1) * others, candidates)
    shares = 1 + exact
    missing = count - int(shares.sum())
    shares[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return shares
