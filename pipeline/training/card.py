"""Metrics of an epoch, and the fields of a network's card (:class:`pipeline.store.documents.NetworkCard`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.compute.device import TrainingPrecision
from pipeline.data.normalisation import Normalisation
from pipeline.store.documents import DataCard, NetworkLineage, Role


@dataclass(frozen=True)
class EpochRecord:
    """Metrics of one epoch.

    Attributes:
        epoch: counted from 0.
        train_loss: mean over the steps.
        val_top1: validation top-1.
        learning_rate: of the last step.
        seconds: wall time of the steps, without the validation.
        constant: the class that was predicted for all validation images, None if several were.
        precision: of the forward passes.
        compiled: whether torch.compile has made the passes.
    """

    epoch: int
    train_loss: float
    val_top1: float
    learning_rate: float
    seconds: float = field(compare=False)
    constant: int | None = None
    precision: TrainingPrecision = "fp32"
    compiled: bool = False


def card_facts(
    role: Role, network: str, data: DataCard, lineage: Mapping[str, str], normalisation: Normalisation | None = None
) -> dict[str, Any]:
    """Fields of a network's card that do not depend on training.

    Args:
        lineage: hashes of the other inputs; that of the data is added.
        normalisation: of the network; None: that of the training images.
    """
    normalisation = normalisation or Normalisation.of(data)
    return {
        "role": role,
        "network": network,
        "num_classes": len(data.class_names),
        **{key: getattr(data, key) for key in ("class_names", "image")},
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
        "lineage": NetworkLineage(data=data.fingerprint, **lineage),
    }


def training_facts(records: Sequence[EpochRecord], seed: int, keep: Literal["last", "best"]) -> dict[str, Any]:
    """Fields that training adds."""
    best = max(records, key=lambda record: record.val_top1)
    kept = best if keep == "best" else records[-1]
    return {
        "source": "trained",
        "seed": seed,
        "epochs": len(records),
        "precision": kept.precision,
        "compiled": kept.compiled,
        "kept_epoch": kept.epoch,
        "val_top1": kept.val_top1,
        "best_val_top1": best.val_top1,
        "best_val_epoch": best.epoch,
    }


def checkpoint_facts(val_top1: float) -> dict[str, Any]:
    """Fields of a network from a given checkpoint, in place of :func:`training_facts`."""
    nothing = dict.fromkeys(
        ("seed", "epochs", "precision", "compiled", "kept_epoch", "best_val_top1", "best_val_epoch")
    )
    return {"source": "checkpoint", "val_top1": val_top1, **nothing}
