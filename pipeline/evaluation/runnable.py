"""Pairs of an exported file and a runtime for it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LineageError, ParamsError
from pipeline.lineage import NetworkRun
from pipeline.runtimes import format_read_by, runtime_class
from pipeline.store.documents import ExportedFile
from pipeline.store.tables import sha256_model


@dataclass(frozen=True)
class RunnableFile:
    """An exported file of a network with a runtime for its format."""

    network: NetworkRun
    file: ExportedFile
    runtime: str

    @property
    def path(self) -> Path:
        return self.network.places.export / self.file.name

    @property
    def name(self) -> str:
        return f"{self.file.name}-{self.runtime}"


def runnable_files(
    networks: Sequence[NetworkRun], runtimes: Sequence[str], key: str, names: Sequence[str] | None = None
) -> list[RunnableFile]:
    """Pair every exported file of the networks with each of the ``runtimes`` for its format.

    A student must have a file for each runtime; the teacher alone need not.

    Args:
        key: source of ``runtimes`` for messages, such as "params.yaml: evaluate.runtimes".
        names: file names to include, default all.

    Raises:
        ParamsError: a runtime has no file, or a name is not in the manifest.
        DataError: a file is missing, or the manifest is damaged.
        LineageError: the hash of a file differs from the manifest.
    """
    listed = {file.name: (network, file) for network in networks for file in network.exported.files}
    for name in names or ():
        if name not in listed:
            where = key.partition(":")[0]
            raise ParamsError(f"{where}: files asks for {name}; choose from the exported files: {', '.join(listed)}")
    pairs = [
        RunnableFile(network, file, runtime)
        for network, file in listed.values()
        for runtime in runtimes
        if (names is None or file.name in names) and format_read_by(runtime, file.precision) == file.format
    ]
    int8_formats = {file.format for _, file in listed.values() if file.precision == "int8"}
    for name in runtimes:
        if int8_formats and format_read_by(name, "int8") == "tensorrt" and "tensorrt" not in int8_formats:
            logging.warning("%s asks for %s, but no int8 file is for it; export.tensorrt: true writes one", key, name)
    without_file = sorted(set(runtimes) - {pair.runtime for pair in pairs})
    if without_file and any(network.student for network in networks):
        raise ParamsError(
            f"{key} asks for {without_file[0]}, but no selected file is for it; remove it from that list, or let the "
            f"export stage write {format_read_by(without_file[0], 'fp32')} files"
        )
    for path, recorded in {pair.path: pair.file.sha256 for pair in pairs}.items():
        # the file must be the one that passed the parity check; loading a .pt2 file also runs code from it
        if (actual := sha256_model(path)) != recorded:
            raise LineageError(
                f"{path} has hash {actual[:12]}, but the export manifest lists it with {recorded[:12]}; run `dvc repro`"
            )
    return pairs


def check_available(runtimes: Iterable[str], key: str) -> None:
    """Raise ParamsError for the first runtime that is not available here; ``key`` as in :func:`runnable_files`."""
    for name in runtimes:
        reason = runtime_class(name).unavailable()
        if reason is not None:
            raise ParamsError(f"{key} asks for {name}: {reason.rstrip('.')}; or remove it from that list")
