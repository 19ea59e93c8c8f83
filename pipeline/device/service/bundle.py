"""Reading a bundle: one file that holds the program, the models, their inputs and a hash of each of these."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.device.benchmark.plan import Plan
from pipeline.device.errors import DeviceError, brief

SCHEMA = 1
DATA = "bundle/"
MANIFEST = "bundle/manifest.json"
INPUTS = "bundle/inputs.npy"
EXPECTED = "bundle/expected.npz"
MODELS = "bundle/models/"

_MANIFEST_LIMIT = 64 << 20
_CHUNK = 1 << 20
_ENCRYPTED = 1  # of the flags of a file in an archive
_LONGEST_NAME = 200  # characters; file systems end at 255 for a part
_SHA256 = re.compile(r"[0-9a-f]{64}")
# No empty part, no leading dot and no separator but "/": such a name cannot lead out of the folder it is put in.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")

Hashed = Callable[[int], None]


class BundleError(DeviceError):
    """A bundle is damaged, was tampered with, or was written by another version."""


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one file in the archive."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Bundle:
    """An archive whose table of contents agrees with its manifest; the contents are not yet read.

    Attributes:
        plan: paths as they are in the archive.
        card: names, labels, preprocessing and lineage of what is measured, ready for JSON.
        files: all files in the archive but the manifest itself.
    """

    path: Path
    plan: Plan
    card: Mapping[str, Any]
    files: Mapping[str, Entry]

    @property
    def data(self) -> dict[str, Entry]:
        """The files that are not code: models, inputs and expected outputs."""
        return {name: entry for name, entry in self.files.items() if name.startswith(DATA)}


def is_safe_name(name: str) -> bool:
    """Whether a path in an archive is made of plain names only, and so stays within the folder it is put in."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


def _folders(name: str) -> list[str]:
    """The folders that a path in an archive leads through."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise
        raise BundleError(f"{path} does not exist; write the bundle first.") from None
    except OSError as error:
        # what a damaged table of contents makes zipfile ask of the system; a full disk and the like are the caller's
        if error.errno not in {None, errno.EINVAL}:
            raise
        raise BundleError(f"{path} is not a whole bundle ({brief(error)}); copy or write it again.") from error
    except (
        zipfile.BadZipFile,
        EOFError,
        LookupError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        raise BundleError(f"{path} is not a whole bundle ({brief(error)}); copy or write it again.") from error


def open_bundle(path: Path) -> Bundle:
    """Read the manifest and compare it with the archive's table of contents.

    Raises:
        BundleError: no such file, no bundle, another schema, a name that leads out of the folder, or files and sizes
            that are not those of the manifest.
        PlanError: the plan in it cannot be read.
    """
    with _damage(path), zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        found = {info.filename: info.file_size for info in infos}
        if len(found) != len(infos):
            raise BundleError(f"{path} holds two files of one name; write the bundle again.")
        # Bundles are not compressed, so that none unpacks to more than it is; nor is there a password to ask for.
        if odd := [info for info in infos if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED]:
            raise BundleError(
                f"{path} has {brief(repr(odd[0].filename))} compressed or encrypted, which none is; write it again."
            )
        manifest = _manifest(path, archive, found)
    try:
        files = {str(name): Entry(**entry) for name, entry in manifest["files"].items()}
        plan = Plan.from_json(json.dumps(manifest["plan"]))
        card = dict(manifest["card"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the manifest of {path} cannot be read ({brief(error)}); write the bundle again.") from error
    for name, entry in files.items():
        if not is_safe_name(name):
            raise BundleError(
                f"{path} names {brief(repr(name))}, which may lead out of its folder; do not use this file."
            )
        if not (isinstance(entry.sha256, str) and _SHA256.fullmatch(entry.sha256) and isinstance(entry.size, int)):
            raise BundleError(f"the manifest of {path} has no hash and size of {name}; write the bundle again.")
    if clash := next((name for name in files if not files.keys().isdisjoint(_folders(name))), None):
        raise BundleError(f"{path} has {clash} below a name that is a file's own; write the bundle again.")
    _compare(path, found, files)
    bundle = Bundle(path, plan, card, files)
    if missing := sorted({*plan_paths(plan)} - files.keys()):
        raise BundleError(f"{path} lacks {brief(missing[0])}, which its plan names; write the bundle again.")
    return bundle


def _manifest(path: Path, archive: zipfile.ZipFile, sizes: Mapping[str, int]) -> dict[str, Any]:
    if MANIFEST not in sizes:
        raise BundleError(f"{path} has no {MANIFEST}, so it is no whole bundle; copy or write it again.")
    if sizes[MANIFEST] > _MANIFEST_LIMIT:
        raise BundleError(f"the manifest of {path} has {sizes[MANIFEST]} bytes, which is no manifest; write it again.")
    try:
        with archive.open(MANIFEST) as file:
            manifest = json.loads(file.read(_MANIFEST_LIMIT))
        schema = manifest["schema"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(f"the manifest of {path} cannot be read ({brief(error)}); write the bundle again.") from error
    if schema != SCHEMA:
        raise BundleError(
            f"{path} has schema {brief(schema)}, but this program reads {SCHEMA}; write the bundle again."
        )
    return dict(manifest)


def _compare(path: Path, found: Mapping[str, int], files: Mapping[str, Entry]) -> None:
    if different := sorted((found.keys() - {MANIFEST}) ^ files.keys()):
        what = "holds {}, which its manifest does not name" if different[0] in found else "lacks {}"
        raise BundleError(f"{path} {what.format(brief(different[0]))}; copy or write the bundle again.")
    for name, entry in files.items():
        if found[name] != entry.size:
            raise BundleError(f"{name} in {path} has {found[name]} bytes, not {entry.size}; copy the bundle again.")


def plan_paths(plan: Plan) -> list[str]:
    """All files that a plan names; an OpenVINO .xml has its .bin beside it."""
    paths = [plan.inputs, *filter(None, [plan.expected])]
    for variant in plan.variants:
        paths.append(variant.path)
        if variant.path.endswith(".xml"):
            paths.append(variant.path.removesuffix(".xml") + ".bin")
    return paths


def moved(plan: Plan, move: Callable[[str], str]) -> Plan:
    """The plan with every path replaced by ``move(path)``."""
    return dataclasses.replace(
        plan,
        inputs=move(plan.inputs),
        expected=None if plan.expected is None else move(plan.expected),
        variants=tuple(dataclasses.replace(variant, path=move(variant.path)) for variant in plan.variants),
    )


def verify(bundle: Bundle, on_bytes: Hashed | None = None) -> None:
    """Compare the hash of every file.

    Args:
        on_bytes: called with the number of bytes of each piece that was read.

    Raises:
        BundleError: names the first file whose bytes are not those of the manifest.
    """
    with _damage(bundle.path), zipfile.ZipFile(bundle.path) as archive:
        for name in sorted(bundle.files):
            _copy(bundle, archive, name, None, on_bytes)


def extract(bundle: Bundle, folder: Path, on_bytes: Hashed | None = None) -> Plan:
    """Verify every file and put models, inputs and expected outputs below ``folder``.

    Returns:
        the plan with the paths of the extracted files.

    Raises:
        BundleError: as ``verify``; what was extracted by then is removed.
        OSError: the folder cannot be written, or is full; likewise.
    """
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _damage(bundle.path), zipfile.ZipFile(bundle.path) as archive:
            for name in sorted(bundle.files):
                if not name.startswith(DATA):
                    _copy(bundle, archive, name, None, on_bytes)
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    _copy(bundle, archive, name, file, on_bytes)
                    file.flush()
                    # Only pages that are on the disk can be dropped from the file cache before a cold start.
                    os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(folder / DATA if existed else folder, ignore_errors=True)
        raise
    return moved(bundle.plan, lambda name: str(folder / name))


def _copy(
    bundle: Bundle, archive: zipfile.ZipFile, name: str, target: IO[bytes] | None, on_bytes: Hashed | None
) -> None:
    """Hash one file, and write it if there is a target; never more bytes than the manifest says."""
    entry = bundle.files[name]
    digest, left = hashlib.sha256(), entry.size
    with archive.open(name) as source:
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            if target is not None:
                target.write(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    if left or digest.hexdigest() != entry.sha256:
        raise BundleError(f"{name} in {bundle.path} is not what its manifest says (sha256); copy the bundle again.")
