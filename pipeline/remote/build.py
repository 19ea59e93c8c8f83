"""Writes a bundle. The same content always gives the same bytes."""

import dataclasses
import hashlib
import io
import itertools
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipeline
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.service import bundle
from pipeline.portable.accuracy import Expected
from pipeline.portable.files import atomic_file, sha256_file
from pipeline.remote.errors import RemoteError
from pipeline.store.paths import model_files

_SHEBANG = b"#!/usr/bin/env python3\n"
_CODE = ("__init__.py", "portable/*.py", "device/**/*.py", "runtimes/*.py")  # code that devices need
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date of the zip format
_UNIX = 3
_CHUNK = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class BundleContent:
    """Content of a bundle: plan, and images and reference outputs by key, which several variants may share.

    A key has letters, digits, ``_`` and ``-``, and does not begin with ``-``.

    Attributes:
        plan: plan with the model paths on this machine; the ``inputs`` and ``expected`` of its variants are keys.
        inputs: preprocessed images of each key, float32 [N, 3, H, W].
        expected: reference outputs and labels of each key.
        card: names, labels, preprocessing and lineage, as JSON values.
    """

    plan: Plan
    inputs: Mapping[str, NDArray[np.float32]]
    expected: Mapping[str, Expected]
    card: Mapping[str, Any]


def write_bundle(path: Path, content: BundleContent) -> str:
    """Write a bundle atomically and return its SHA-256.

    Raises:
        RemoteError: a model file is missing, or its name is not allowed in a bundle.
        KeyError: a variant names inputs or expected outputs that are not in ``content``.
        ValueError: a key is not allowed, or the card has values that JSON does not have.
    """
    models = _archive_names(content.plan)
    inputs = {key: _array_name(bundle.INPUTS, key, ".npy") for key in sorted(content.inputs)}
    expected = {key: _array_name(bundle.EXPECTED, key, ".npz") for key in sorted(content.expected)}

    def in_archive(variant: Variant) -> Variant:
        answers = None if variant.expected is None else expected[variant.expected]
        return dataclasses.replace(
            variant, path=models[Path(variant.path)], inputs=inputs[variant.inputs], expected=answers
        )

    plan = dataclasses.replace(content.plan, variants=tuple(map(in_archive, content.plan.variants)))
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
                for key, name in inputs.items():
                    writer.add_array(name, content.inputs[key])
                for key, name in expected.items():
                    content.expected[key].save(buffer := io.BytesIO())
                    writer.add(name, buffer.getvalue())
                manifest = {
                    "schema": bundle.SCHEMA,
                    "plan": json.loads(plan.to_json()),
                    "card": dict(content.card),
                    "files": writer.files,
                }
                text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
                writer.add(bundle.MANIFEST, text.encode())
        sha256 = sha256_file(temporary)
    path.chmod(0o755)
    return sha256


def _array_name(folder: str, key: str, ending: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"the key {key!r} of an array may hold only letters, digits, _ and -")
    return f"{folder}{key}{ending}"


def _archive_names(plan: Plan) -> dict[Path, str]:
    """Map each model file to its name in the bundle. Files with the same name get different folders."""
    names: dict[Path, str] = {}
    for variant in plan.variants:
        path = Path(variant.path)
        if path in names:
            continue
        clash = f"{bundle.MODELS}{path.name}" in names.values()
        folder = f"{bundle.MODELS}{variant.name}/" if clash else bundle.MODELS
        for part in model_files(path):
            names[part] = f"{folder}{part.name}"
            if not part.is_file():
                raise RemoteError(f"{part} does not exist; run `dvc repro export` to make it.")
            if not bundle.is_safe_name(names[part]):
                raise RemoteError(f"{part} has a name that bundles do not allow; use letters, digits and ._+- only.")
    return names


@dataclass
class _Writer:
    """Adds uncompressed files to an archive and records their hashes. Compressed bytes depend on the zlib version."""

    archive: zipfile.ZipFile
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, content: bytes) -> None:
        self._add(name, [content], len(content))

    def add_file(self, name: str, path: Path) -> None:
        with path.open("rb") as source:
            self._add(name, iter(lambda: source.read(_CHUNK), b""), path.stat().st_size)

    def add_array(self, name: str, array: NDArray[Any]) -> None:
        """Write the format of np.save without a second copy of the array in memory."""
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
