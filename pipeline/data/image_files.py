"""The class folders and image files of a data set, and what is left out of them."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import decoding
from pipeline.errors import DataError
from pipeline.store.documents import ImageFormat

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# hidden files and folders, and those that macOS, Windows, network drives and file systems make
_OF_SYSTEMS = re.compile(
    r"(?i)\.|(__MACOSX|@eaDir|@Recycle|@Recently-Snapshot|#recycle|#snapshot|~snapshot|\$RECYCLE\.BIN"
    r"|System Volume Information|lost\+found)$"
)
LOOK = "capitals, the encoding of accents or blanks"


def decode_at(path: str | Path, form: ImageFormat) -> NDArray[np.uint8]:
    """Decode an image file to the pixels that networks see: uint8 [height, width, channels].

    Raises:
        DataError: as of :func:`pipeline.data.decoding.decode`.
    """
    try:
        return decoding.read_pixels(path, **form.of_decoding)
    except decoding.ImageError as error:
        raise DataError(str(error)) from None


class ImageTree:
    """Lists the folders and image files of a data set; each folder counts once, however many links lead to it.

    Args:
        root: folder of the data set.

    Attributes:
        problems: one sentence for each file that cannot be used.
        links: whether an image file is a link or has further names (hard links).

    All methods raise DataError if a folder cannot be read, is missing behind a link, or is reached a second time.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # a link to a folder above the data set would lead back into it
        above = [root.resolve(), *root.resolve().parents]
        self._known = {_identity(folder): folder for folder in above}
        self._left_out: dict[str, list[Path]] = {}
        self.problems: list[str] = []
        self.links = False

    def folders(self, parent: Path) -> list[Path]:
        """The folders in ``parent``, sorted, without hidden ones; images beside them are left out."""
        folders = []
        for entry in self._entries(parent):
            path = parent / entry.name
            if is_folder(entry):
                folders.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                self._leave_out("images that lie in no class folder", path)
            else:
                refuse_broken_link(path)
        return sorted(folders)

    def images(self, folder: Path) -> list[Path]:
        """All image files below ``folder``, sorted by path."""
        found, waiting = list[Path](), [folder]
        while waiting:
            parent = waiting.pop()
            for entry in self._entries(parent):
                path = parent / entry.name
                if is_folder(entry):
                    waiting.append(path)
                    continue
                is_image = path.suffix.lower() in IMAGE_SUFFIXES
                problem = None if entry.is_file(follow_symlinks=False) else decoding.file_problem(path)
                if problem is not None and (is_image or entry.is_symlink()):  # such a link may have led to a folder
                    self.problems.append(problem)
                if is_image:
                    found.append(path)
                    self.links |= entry.is_symlink() or entry.stat().st_nlink > 1
                elif problem is None:
                    self._leave_out(f"files without one of the suffixes {' '.join(sorted(IMAGE_SUFFIXES))}", path)
        return sorted(found)

    def enter(self, folder: Path) -> None:
        """Count a folder; DataError if it was counted before."""
        try:
            known = self._known.setdefault(_identity(folder), folder)
        except OSError as error:
            raise _unreadable(error) from None
        if known is not folder:
            names = f"{decoding.shown(folder)} and {decoding.shown(known)}"
            raise DataError(f"{names} are the same folder, whose images would be taken twice; remove the link")

    def warn(self) -> None:
        """Say what was left out, each kind once."""
        for what, paths in self._left_out.items():
            logging.warning("%s: left out %d %s, such as %s", self._root, len(paths), what, decoding.shown(min(paths)))

    def _entries(self, folder: Path) -> Iterable[os.DirEntry[Any]]:
        self.enter(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _OF_SYSTEMS.match(entry.name):
                        yield entry
                    elif is_folder(entry) or Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                        self._leave_out("hidden files and folders of systems", Path(entry.path))
        except OSError as error:
            raise _unreadable(error) from None

    def _leave_out(self, what: str, path: Path) -> None:
        self._left_out.setdefault(what, []).append(path)


def name_problems(paths: Iterable[Path]) -> list[str]:
    """Describe in one sentence each path that has control characters or looks like another one to some systems."""
    problems = []
    by_look: dict[str, Path] = {}
    for path in paths:
        if decoding.shown(path) != str(path):
            problems.append(f"{str(path)!a} is a file name with characters that cannot be shown; rename the file")
            continue
        other = by_look.setdefault(look(str(path)), path)
        if other is not path:
            problems.append(f"{path} and {other} differ in {LOOK} only; rename or remove one of them")
    return problems


def shared_files(groups: Iterable[Iterable[Path]]) -> list[tuple[Path, Path]]:
    """Pairs of paths in two groups that links make one file; broken links are left out."""
    pairs = []
    first: dict[tuple[int, int], tuple[int, Path]] = {}
    for number, paths in enumerate(groups):
        for path in paths:
            if decoding.file_problem(path) is None:
                group, other = first.setdefault(_identity(path), (number, path))
                if group != number:
                    pairs.append((path, other))
    return pairs


def is_folder(entry: Path | os.DirEntry[Any]) -> bool:
    """False for a link in a circle, and for what may not be read, too."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def refuse_broken_link(path: Path) -> None:
    """Raise DataError for a link that leads to nothing, because a class or a split would be missing without a word."""
    if path.is_symlink() and (problem := decoding.file_problem(path)) is not None:
        raise DataError(problem)


def look(name: str) -> str:
    """Equal for names that differ in ``LOOK`` only, which macOS and Windows take for one."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _unreadable(error: OSError) -> DataError:
    path = decoding.shown(error.filename)
    return DataError(f"{path} cannot be read ({error.strerror}); make it readable or fix data.root")
