"""Settings shared by all arms: networks, sizes, device, images, and the pipeline's parameters for them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

import models
from pipeline.config import AugmentationParams, DataParams, KdParams, Params, ViewName, load_params
from pipeline.data.augmentation import NONE
from pipeline.data.loader import Images, open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.sources import open_source
from pipeline.data.store import make_store, read_card
from pipeline.store.documents import ImageFormat

ROOT = Path(__file__).parent.parent
CROP_PADDING = 4  # pixels, as in public CIFAR recipes
TEMPERATURES = {"low_energy": 6.0, "mid": 4.0, "high_energy": 2.0}
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
_HELD_OUT = {"val": 2, "test": 1}  # images of each class; few, because validation is not timed


@dataclass(frozen=True)
class Setting:
    """Setting of a measurement.

    Attributes:
        teacher, student: names of networks.
        batch_size: clean images in a step.
        image_size: side, pixels.
        steps: timed steps of an arm in a round.
        warmup_steps: untimed steps before them, where an arm does not warm up by a whole epoch.
        device: where to compute.
        stores: folder of both stores, ``packed`` and ``files``.
        precision: of the pipeline's arms.
    """

    teacher: str
    student: str
    batch_size: int
    image_size: int
    steps: int
    warmup_steps: int
    device: Literal["cpu", "cuda"]
    stores: str
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @property
    def image_count(self) -> int:
        """Clean images that an arm is timed on."""
        return self.steps * self.batch_size

    def store(self, storage: str = "packed") -> Path:
        return Path(self.stores) / storage

    def images(self, split: str, storage: str = "packed", augmentation: AugmentationParams = NONE) -> Images:
        """A split on the device, in the normalisation of its training images."""
        folder = self.store(storage)
        normalisation = Normalisation.of(read_card(folder))
        return open_images(folder, split, torch.device(self.device), normalisation, augmentation)

    def network(self, name: str) -> nn.Module:
        """A network on the device, contiguous; random weights, equal in each arm, are as fast as trained ones."""
        torch.manual_seed(0)
        shape = 3, self.image_size, self.image_size
        return models.build(name, len(read_card(self.store()).class_names), shape=shape).to(self.device)

    def clock(self) -> float:
        """Time in seconds, after the device has finished all queued work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def params(
        self, fraction: float = 0.0, epochs: int = 1, *, compiled: bool = False, view: ViewName = "clean"
    ) -> Params:
        """Plain KD with energy temperatures; with HE-DA at ``fraction`` if it is above 0; the rest as shipped."""
        heda = {"mix": "cutmix", "fraction": fraction} if fraction else {"mix": "none"}
        shipped = _shipped()
        training = shipped.distill.training.model_copy(
            update={
                "epochs": epochs,
                "batch_size": self.batch_size,
                "learning_rate": LEARNING_RATE,
                "momentum": MOMENTUM,
                "weight_decay": WEIGHT_DECAY,
                "warmup_epochs": 0.0,
                "precision": self.precision,
                "compile": "on" if compiled else "off",
            }
        )
        distill = shipped.distill.model_copy(
            update={
                "network": self.student,
                "loss": KdParams(name="kd", ce_weight=CE_WEIGHT, kd_weight=KD_WEIGHT),
                "temperatures": shipped.distill.temperatures.model_copy(update=TEMPERATURES | {"mode": "groups"}),
                "view": view,
                "training": training,
            }
        )
        return shipped.model_copy(update={"heda": shipped.heda.model_copy(update=heda), "distill": distill})


def data_params(name: str, root: Path, image_size: int, storage: str = "packed") -> DataParams:
    """The pipeline's parameters for a data set, every image of it."""
    values = {"name": name, "root": str(root), "image_size": image_size, "channels": 3, "storage": storage}
    return _shipped().data.model_copy(update=values | {"imbalance_factor": 1.0, "max_images_per_class": None})


@cache
def _shipped() -> Params:
    return load_params(ROOT / "params.yaml")


def make_stores(images: Path | None, setting: Setting) -> str:
    """Write both stores of ``setting``: as many training images as an epoch has, a few held out.

    Args:
        images: a folder with train/<class>/<image>; None for scikit-learn's digits.

    Returns:
        Description of the images.

    Raises:
        DataError: the folder cannot be used.
    """
    folder = Path(setting.stores)
    if images is None:
        published = folder / "digits"
        _write_digits(published / "train", setting.image_size)
        origin = f"scikit-learn's digits, scaled to {setting.image_size} x {setting.image_size}, as PNG"
    else:
        published, origin = images, f"image files of folder {images.name}"
    _choose(published, folder / "chosen", setting)
    for storage in ("packed", "files"):
        params = data_params("imagefolder", folder / "chosen", setting.image_size, storage)
        card = make_store(setting.store(storage), params)
    return f"{origin}; {card.counts.train:,} for training, {len(card.class_names)} classes"


def _write_digits(folder: Path, size: int) -> None:
    params = data_params("digits", folder, size)
    source, form = open_source(params), ImageFormat.of(params)
    digits = source.splits["train"]
    for index, label in enumerate(digits.labels.tolist()):
        path = folder / source.class_names[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.pixels(index, form)).save(path)


def _choose(published: Path, folder: Path, setting: Setting) -> None:
    """An image folder of links to at least as many training images as an epoch has, balanced, and a few held out.

    A class with fewer images than its share gives each of them several times: only speed is measured.
    """
    source = open_source(data_params("imagefolder", published, setting.image_size))
    train = source.splits["train"]
    files = np.array(train.paths, dtype=object)
    held_out = sum(_HELD_OUT.values())
    for label, name in enumerate(source.class_names):
        own = files[train.labels == label]
        for_others, for_train = cycle(own[:held_out]), cycle(own[held_out:])  # an image is in one split alone
        for part, wanted in {**_HELD_OUT, "train": max(2, -(-setting.image_count // len(source.class_names)))}.items():
            linked = folder / part / name
            linked.mkdir(parents=True)
            for number, path in enumerate(islice(for_train if part == "train" else for_others, wanted)):
                (linked / f"{number:06d}{path.suffix}").symlink_to(path.absolute())
