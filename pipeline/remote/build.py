"""Writing a bundle: the same content gives the same bytes, whenever and wherever it is written."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipeline
from pipeline.device.benchmark.plan import Plan
from pipeline.device.service.bundle import EXPECTED, INPUTS, MANIFEST, MODELS, SCHEMA, is_safe_name, moved
from pipeline.remote.errors import RemoteError
from pipeline.store.atomic import atomic_file
from pipeline.store.tables import model_files, sha256_file

_SHEBANG = b"#!/usr/bin/env python3\n"
_CODE = ("__init__.py", "device/**/*.py", "runtimes/*.py")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that an archive can hold
_UNIX = 3
_CHUNK = 1 << 20


@dataclass(frozen=True)
class BundleContent:
    """What a device measures.

    Attributes:
        plan: with this machine's paths of the models; ``inputs`` and ``expected`` are replaced by the arrays below.
        inputs: float32 [N, 3, H, W], preprocessed.
        logits: float32 [N, K], of the network that the files were exported from.
        energy: float32 [N], of these logits.
        labels: int64 [N].
        groups: int8 [N], 0 low, 1 middle, 2 high energy, -1 unknown.
        card: names, labels, preprocessing and lineage, ready for JSON.
    """

    plan: Plan
    inputs: NDArray[np.float32]
    logits: NDArray[np.float32]
    energy: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int8]
    card: Mapping[str, Any]

    def __post_init__(self) -> None:
        images = len(self.inputs)
        for key, kind, dimensions in (
            ("inputs", np.float32, 4),
            ("logits", np.float32, 2),
            ("energy", np.float32, 1),
            ("labels", np.int64, 1),
            ("groups", np.int8, 1),
        ):
            array = getattr(self, key)
            if array.dtype != kind or array.ndim != dimensions or len(array) != images or images == 0:
                raise ValueError(f"{key} is {array.dtype} {list(array.shape)}, not {kind.__name__} for {images} images")


def write_bundle(path: Path, content: BundleContent) -> str:
    """Write a bundle in one piece.

    Returns:
        its SHA-256.

    Raises:
        RemoteError: a model file is missing or has a name that a bundle cannot hold.
        ValueError: the card is not ready for JSON.
    """
    models = _archive_names(content.plan)
    plan = dataclasses.replace(content.plan, inputs=INPUTS, expected=EXPECTED)
    plan = moved(plan, lambda name: models.get(Path(name), name))
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(_SHEBANG)
            with zipfile.ZipFile(file, "w") as archive:
                writer = _Writer(archive)
                root = Path(pipeline.__file__).parent
                writer.add("__main__.py", (root / "device/__main__.py").read_bytes())
                for source in sorted(source for pattern in _CODE for source in root.glob(pattern)):
                    writer.add(source.relative_to(root.parent).as_posix(), source.read_bytes())
                for source, name in models.items():
                    writer.add_file(name, source)
                writer.add_array(INPUTS, content.inputs)
                writer.add(EXPECTED, _expected(content))
                manifest = {
                    "schema": SCHEMA,
                    "plan": json.loads(plan.to_json()),
                    "card": dict(content.card),
                    "files": {name: writer.files[name] for name in sorted(writer.files)},
                }
                writer.add(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode())
        sha256 = sha256_file(temporary)
    path.chmod(0o755)
    return sha256


def _archive_names(plan: Plan) -> dict[Path, str]:
    """All model files with their places in the bundle; files of one name from different folders are kept apart."""
    names: dict[Path, str] = {}
    for variant in plan.variants:
        path = Path(variant.path)
        if path in names:
            continue
        folder = MODELS
        if f"{folder}{path.name}" in names.values():
            folder = f"{MODELS}{variant.name}/"
        for part in model_files(path):
            name = f"{folder}{part.name}"
            if not part.is_file():
                raise RemoteError(f"{part} does not exist; run `dvc repro export` to make it.")
            if not is_safe_name(name):
                raise RemoteError(f"{part} has a name that no bundle can hold; use letters, digits and ._+- only.")
            names[part] = name
    return names


def _expected(content: BundleContent) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer, logits=content.logits, energy=content.energy, labels=content.labels, groups=content.groups
    )  # numpy dates its members 1980
    return buffer.getvalue()


@dataclass
class _Writer:
    """Adds files to an archive and keeps their hashes. Nothing is compressed: compressed bytes differ between zlibs."""

    archive: zipfile.ZipFile
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, content: bytes) -> None:
        self._add(name, [content], len(content))

    def add_file(self, name: str, path: Path) -> None:
        with path.open("rb") as source:
            self._add(name, iter(lambda: source.read(_CHUNK), b""), path.stat().st_size)

    def add_array(self, name: str, array: NDArray[Any]) -> None:
        """As np.save does, but without a second copy of the array in memory."""
        array = np.ascontiguousarray(array)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        rows = (row.tobytes() for row in array)
        self._add(name, itertools.chain([header.getvalue()], rows), len(header.getvalue()) + array.nbytes)

    def _add(self, name: str, pieces: Iterable[bytes], size: int) -> None:
        info = zipfile.ZipInfo(name, _DATE)
        info.create_system = _UNIX
        info.external_attr = 0o644 << 16
        info.file_size = size
        digest = hashlib.sha256()
        with self.archive.open(info, "w") as target:
            for piece in pieces:
                digest.update(piece)
                target.write(piece)
        self.files[name] = {"sha256": digest.hexdigest(), "size": info.file_size}
