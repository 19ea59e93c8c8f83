"""The store of a data set."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.fuzz.judge import Target
from bench.fuzz.mutate import mutate_bytes, mutate_value
from bench.fuzz.readers.common import Json, as_json, odd_parquet, plain_parquet
from pipeline.data.loader import open_images
from pipeline.data.store import preprocessing, read_card, read_split
from pipeline.training.card import network_card


def _store_seeds(scratch: Path) -> Json:
    scratch.mkdir(parents=True, exist_ok=True)
    card = {
        "schema": 1,
        "name": "digits",
        "storage": "packed",
        "class_names": ["zero", "one", "two"],
        "image_size": 8,
        "mean": [0.3, 0.3, 0.3],
        "std": [0.2, 0.2, 0.2],
        "counts": {"train": 6, "val": 6, "test": 6},
        "train_class_counts": [2, 2, 2],
        "source": "drawn",
        "licence": "CC0",
        "fingerprint": "0" * 64,
    }
    images = np.arange(6 * 8 * 8 * 3, dtype=np.uint8).reshape(6, 8, 8, 3)
    paths = []
    for index, image in enumerate(images):
        Image.fromarray(image).save(scratch / f"{index}.png")
        paths.append(str(scratch / f"{index}.png"))
    return {
        "card": card,
        "images": images,
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "files": {"path": paths, "sha256": ["0" * 64] * 6},
    }


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


_HEADERS = (
    "{'descr': '|O', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 0, 8, 3), }",
    "{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '<i8', 'fortran_order': True, 'shape': (), }",
    "__import__('os').system('touch owned')",
    "{" * 900,
    "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
)


def _odd_npy(array: Any, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return mutate_bytes(_npy(array), rng, (b"|O", b"<f8", b"\x03\x00", b"'shape': ", b"(", b"9" * 30, b"-"))
        case 1:
            kind = rng.choice((np.float32, np.uint8, np.int8, np.bool_, np.complex64, "U3", "M8[s]", object))
            return _npy(array.astype(kind))
        case 2:
            shape = rng.choice(((-1,), (1, -1), (-1, 1), (2, 3, -1)))
            return _npy(array.reshape(shape) if rng.randrange(2) else array[: rng.randrange(6)])
        case _:
            header = rng.choice(_HEADERS).encode() + b"\n"
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()


def _write_store(rng: random.Random, seeds: Json, folder: Path) -> None:
    packed = rng.randrange(2) == 0
    card = seeds["card"] | {"storage": "packed" if packed else "files"}
    what = rng.randrange(3)
    text = as_json(mutate_value(card, rng) if what == 0 else card)
    (folder / "data.json").write_bytes(mutate_bytes(text, rng) if what == 0 and rng.randrange(3) == 0 else text)
    labels = _odd_npy(seeds["labels"], rng) if what == 1 else _npy(seeds["labels"])
    (folder / "train_labels.npy").write_bytes(labels)
    if packed:
        pixels = _odd_npy(seeds["images"], rng) if what == 2 else _npy(seeds["images"])
        (folder / "train_images.npy").write_bytes(pixels)
    else:
        table = odd_parquet(seeds["files"], None, rng, ("path", "sha256")) if what == 2 else None
        (folder / "train_files.parquet").write_bytes(table or plain_parquet(seeds["files"], None))


def _read_store(folder: Path, seeds: Json) -> None:
    card = read_card(folder / "in")
    preprocessing(card)
    network_card("teacher", "resnet8", card, {})
    read_split(folder / "in", "train")
    images = open_images(folder / "in", "train", torch.device("cpu"))
    index = torch.arange(min(len(images), 2))
    found = images.centre(index)
    assert found.shape[1:] == (3, card["image_size"], card["image_size"]), "images of another size were let through"
    assert 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(card["class_names"]), "a foreign label"


TARGET = Target("store", "data card, labels, pixels and manifest", _store_seeds, _write_store, _read_store)
