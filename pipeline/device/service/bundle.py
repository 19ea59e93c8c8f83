"""Reads a bundle: one zip file with the program, the models, their inputs and a hash of each file."""

import errno
import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.device.benchmark.plan import Plan
from pipeline.device.errors import DeviceError
from pipeline.portable.text import brief

SCHEMA = 2
BUNDLE = "bundle.pyz"
DATA = "bundle/"
MANIFEST = "bundle/manifest.json"
INPUTS = "bundle/inputs/"
EXPECTED = "bundle/expected/"
MODELS = "bundle/models/"

_MANIFEST_LIMIT = 64 << 20
_CHUNK = 1 << 20
_ENCRYPTED = 1  # flag bit of a zip member
_LONGEST_NAME = 200  # characters; most file systems allow 255 for one part
_SHA256 = re.compile(r"[0-9a-f]{64}")
# No empty part, no leading dot and no separator but "/", so the name cannot leave the folder of extraction.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
# Errors that zipfile raises for a damaged archive.
_DAMAGE = (
    *(zipfile.BadZipFile, struct.error, zlib.error, EOFError, LookupError),
    *(NotImplementedError, OverflowError, RuntimeError, ValueError),
)


class BundleError(DeviceError):
    """A bundle is damaged, manipulated, or written by another version."""


@dataclass(frozen=True)
class Entry:
    """Manifest entry of one file: hash and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Bundle:
    """A bundle whose list of files agrees with its manifest. The hashes are not checked yet.

    Attributes:
        plan: plan with the paths in the archive.
        card: names, labels, preprocessing and lineage of the models, as JSON values.
        files: all files in the archive except the manifest.
    """

    path: Path
    plan: Plan
    card: Mapping[str, Any]
    files: Mapping[str, Entry]

    @property
    def data_bytes(self) -> int:
        """Bytes of all models, inputs and expected outputs, without the code."""
        return sum(entry.size for name, entry in self.files.items() if name.startswith(DATA))


def is_safe_name(name: str) -> bool:
    """Return true if a path in an archive has only plain names, so extraction stays within the target folder."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive, and turn errors of a damaged one into BundleError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise
        raise BundleError(f"{path} does not exist; write the bundle first.") from None
    except (OSError, *_DAMAGE) as error:
        # A damaged table of contents causes a seek with EINVAL. The caller handles other errors, such as a full disk.
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
            raise
        raise BundleError(f"{path} is not a complete bundle ({brief(error)}); copy or write it again.") from error


@contextmanager
def _manifest_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"the manifest of {path} cannot be read ({brief(error)}); write the bundle again.") from error


def open_bundle(path: Path) -> Bundle:
    """Read the manifest and compare it with the list of files in the archive.

    Raises:
        BundleError, PlanError: the file is missing or no bundle, has another schema or an unsafe name, or its files or
            sizes differ from the manifest.
    """
    with _opened(path) as archive:
        infos = archive.infolist()
        sizes = {info.filename: info.file_size for info in infos}
        if len(sizes) != len(infos):
            raise BundleError(f"{path} holds two files with the same name; write the bundle again.")
        # Bundles are never compressed, which excludes zip bombs, and never encrypted.
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
                name = brief(repr(info.filename))
                raise BundleError(f"{path} has {name} compressed or encrypted, which is not allowed; write it again.")
        manifest = _manifest(path, archive, sizes)
    with _manifest_errors(path):
        files = {str(name): Entry(**entry) for name, entry in manifest["files"].items()}
        plan = Plan.from_json(json.dumps(manifest["plan"]))
        card = dict(manifest["card"])
    _check_entries(path, files)
    if different := sorted((sizes.keys() - {MANIFEST}) ^ files.keys()):
        problem = "holds {}, which is not in its manifest" if different[0] in sizes else "lacks {}"
        raise BundleError(f"{path} {problem.format(brief(different[0]))}; copy or write the bundle again.")
    for name, entry in files.items():
        if sizes[name] != entry.size:
            raise BundleError(f"{name} in {path} has {sizes[name]} bytes, not {entry.size}; copy the bundle again.")
    if missing := sorted({*_plan_paths(plan)} - files.keys()):
        raise BundleError(f"{path} lacks {brief(missing[0])}, which its plan names; write the bundle again.")
    return Bundle(path, plan, card, files)


def _manifest(path: Path, archive: zipfile.ZipFile, sizes: Mapping[str, int]) -> dict[str, Any]:
    if MANIFEST not in sizes:
        raise BundleError(f"{path} has no {MANIFEST}, so it is not a complete bundle; copy or write it again.")
    if sizes[MANIFEST] > _MANIFEST_LIMIT:
        raise BundleError(f"the manifest of {path} has {sizes[MANIFEST]} bytes, which is too large; write it again.")
    with _manifest_errors(path), archive.open(MANIFEST) as file:
        manifest = dict(json.loads(file.read(_MANIFEST_LIMIT)))
        schema = manifest["schema"]
    if schema != SCHEMA:
        schemas = f"has schema {brief(schema)}, but this program reads {SCHEMA}"
        raise BundleError(f"{path} {schemas}; write the bundle again.")
    return manifest


def _check_entries(path: Path, files: Mapping[str, Entry]) -> None:
    """Raise BundleError for unsafe names, for one name as file and folder, and for entries without hash and size."""
    for name, entry in files.items():
        if not is_safe_name(name):
            problem = f"names {brief(repr(name))}, which may lead out of its folder"
            raise BundleError(f"{path} {problem}; do not use this file.")
        if not (isinstance(entry.sha256, str) and _SHA256.fullmatch(entry.sha256) and isinstance(entry.size, int)):
            raise BundleError(f"the manifest of {path} has no hash and size of {name}; write the bundle again.")
        if any(str(folder) in files for folder in Path(name).parents):
            raise BundleError(f"{path} has {name}, but its folder is a file in the bundle; write the bundle again.")


def _plan_paths(plan: Plan) -> list[str]:
    """List all files of a plan; an OpenVINO .xml file has a .bin file with the weights."""
    models = [variant.path for variant in plan.variants]
    weights = [path.removesuffix(".xml") + ".bin" for path in models if path.endswith(".xml")]
    arrays = [path for variant in plan.variants for path in (variant.inputs, variant.expected) if path is not None]
    return [*models, *weights, *arrays]


def verify(bundle: Bundle) -> None:
    """Check the hash of every file; a BundleError names the first file whose hash differs from the manifest."""
    with _opened(bundle.path) as archive:
        for name in sorted(bundle.files):
            _copy(bundle, archive, name, None)


def extract(bundle: Bundle, folder: Path) -> Plan:
    """Check all hashes and extract models, inputs and expected outputs to ``folder``. After an error nothing is left.

    Returns:
        plan with the paths of the extracted files.
    """
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(bundle.path) as archive:
            for name in sorted(bundle.files):
                if not name.startswith(DATA):
                    _copy(bundle, archive, name, None)
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    _copy(bundle, archive, name, file)
                    file.flush()
                    # The kernel can drop only synced pages from the file cache before a cold start.
                    os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(folder / DATA if existed else folder, ignore_errors=True)
        raise
    return bundle.plan.map_paths(lambda name: str(folder / name))


def _copy(bundle: Bundle, archive: zipfile.ZipFile, name: str, target: IO[bytes] | None) -> None:
    """Hash one file, and write at most the size in the manifest to ``target``, if given."""
    entry = bundle.files[name]
    digest, remaining = hashlib.sha256(), entry.size
    with archive.open(name) as source:
        while remaining >= 0 and (chunk := source.read(min(_CHUNK, remaining + 1))):
            remaining -= len(chunk)
            digest.update(chunk)
            if target is not None and remaining >= 0:
                target.write(chunk)
    if remaining or digest.hexdigest() != entry.sha256:
        raise BundleError(f"{name} in {bundle.path} has another sha256 than in the manifest; copy the bundle again.")
