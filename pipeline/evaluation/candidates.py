"""Which exported file is run by which runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import LineageError, ParamsError
from pipeline.runtimes import FORMAT_READ_BY, runtime_class
from pipeline.store.documents import read_manifest
from pipeline.store.tables import sha256_model


@dataclass(frozen=True)
class Candidate:
    """A file of the export manifest (its entry, its path) in a runtime."""

    file: Mapping[str, Any]
    path: Path
    runtime: str

    @property
    def name(self) -> str:
        return f"{self.file['name']}-{self.runtime}"


def candidates(
    manifest: Path, runtimes: Sequence[str], key: str, names: Sequence[str] | None = None
) -> list[Candidate]:
    """Every file of an export manifest in every asked-for runtime that reads its format.

    Args:
        key: where ``runtimes`` was asked for, as "params.yaml: evaluate.runtimes", for the message.
        names: the files wanted; all unless given.

    Raises:
        ParamsError: none of the files is for a runtime, or the manifest does not list a wanted one.
        DataError: a file is missing, or the manifest is damaged or names one outside of its folder.
        LineageError: a file is not the one that the manifest lists.
    """
    listed = {file["name"]: file for file in read_manifest(manifest)["files"]}
    unknown = [name for name in names or () if name not in listed]
    if unknown:
        where = key.partition(":")[0]
        raise ParamsError(f"{where}: files asks for {unknown[0]}; choose of {manifest}: {', '.join(listed)}")
    files = [listed[name] for name in listed if names is None or name in names]
    found = [
        Candidate(file, manifest.parent / file["name"], runtime)
        for file in files
        for runtime in runtimes
        if FORMAT_READ_BY[runtime] == file["format"]
    ]
    idle = sorted(set(runtimes) - {candidate.runtime for candidate in found})
    if idle:
        raise ParamsError(
            f"{key} asks for {idle[0]}, but {manifest.parent} holds no file for it among those wanted; remove it there "
            f"or have the export stage write {FORMAT_READ_BY[idle[0]]} files"
        )
    for path, recorded in {candidate.path: candidate.file["sha256"] for candidate in found}.items():
        # what is measured must be what was proved, and a .pt2 file is code: only our own are loaded
        if (actual := sha256_model(path)) != recorded:
            raise LineageError(
                f"{path} has hash {actual[:12]}, but {manifest} lists it with {recorded[:12]}; run `dvc repro export`"
            )
    return found


def check_available(runtimes: Iterable[str], key: str) -> None:
    """Raise ParamsError for the first of the runtimes that cannot be used here; ``key`` as for :func:`candidates`."""
    for name in runtimes:
        reason = runtime_class(name).unavailable()
        if reason is not None:
            raise ParamsError(f"{key} asks for {name}: {reason.rstrip('.')}; or remove it there")
