"""The card of a trained network: what it is, how it did on the validation split, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.training.loop import EpochRecord


def network_card(role: str, network: str, data: Mapping[str, Any], lineage: Mapping[str, str]) -> dict[str, Any]:
    """The part that does not depend on training.

    Args:
        role: teacher or student.
        data: card of the packed store.
        lineage: hashes of the other inputs; that of the data is added.
    """
    return {
        "role": role,
        "network": network,
        "num_classes": len(data["class_names"]),
        **{key: data[key] for key in ("class_names", "image_size", "mean", "std")},
        "lineage": {"data": data["fingerprint"], **lineage},
    }


def training_card(records: Sequence[EpochRecord], seed: int) -> dict[str, Any]:
    """The part that training adds. The weights kept are the last epoch's; the best epoch is named beside it only."""
    best = max(records, key=lambda record: record.val_top1)
    return {
        "source": "trained",
        "seed": seed,
        "epochs": len(records),
        "val_top1": records[-1].val_top1,
        "best_val_top1": best.val_top1,
        "best_val_epoch": best.epoch,
    }


def checkpoint_card(val_top1: float) -> dict[str, Any]:
    """The part of a network that someone else trained."""
    return {
        "source": "checkpoint",
        "seed": None,
        "epochs": None,
        "val_top1": val_top1,
        "best_val_top1": None,
        "best_val_epoch": None,
    }
