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
_OF_SYSTEMS = re.compile(r"\.|(__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found)$")
# control characters would break a message into several lines; surrogates are bytes outside of UTF-8
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
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
        links: whether an image file is a link.

    All methods raise DataError if a folder cannot be read, or is reached a second time.
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
            if _is_folder(entry):
                folders.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                self._leave_out("images that lie in no class folder", path)
        return sorted(folders)

    def images(self, folder: Path) -> list[Path]:
        """All image files below ``folder``, sorted by path."""
        found = list[Path]()
        for entry in self._entries(folder):
            path = folder / entry.name
            if _is_folder(entry):
                found += self.images(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
                self.links |= entry.is_symlink()
                if not entry.is_file(follow_symlinks=False) and (problem := decoding.file_problem(path)) is not None:
                    self.problems.append(problem)
            else:
                self._leave_out(f"files without one of the suffixes {' '.join(sorted(IMAGE_SUFFIXES))}", path)
        return sorted(found)

    def enter(self, folder: Path) -> None:
        """Count a folder; DataError if it was counted before."""
        try:
            known = self._known.setdefault(_identity(folder), folder)
        except OSError as error:
            raise _unreadable(error) from None
        if known is not folder:
            raise DataError(
                f"{folder} and {known} are the same folder, whose images would be taken twice; remove the link"
            )

    def warn(self) -> None:
        """Say what was left out, each kind once."""
        for what, paths in self._left_out.items():
            logging.warning("%s: left out %d %s, such as %s", self._root, len(paths), what, min(paths))

    def _entries(self, folder: Path) -> Iterable[os.DirEntry[Any]]:
        self.enter(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _OF_SYSTEMS.match(entry.name):
                        yield entry
                    elif _is_folder(entry) or Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
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
        if _UNUSABLE.search(str(path)):
            problems.append(f"{str(path)!a} is a file name with characters that cannot be shown; rename the file")
            continue
        other = by_look.setdefault(look(str(path)), path)
        if other is not path:
            problems.append(f"{path} and {other} differ in {LOOK} only; rename or remove one of them")
    return problems


def shared_file_problems(groups: Iterable[Iterable[Path]]) -> list[str]:
    """Describe in one sentence each file that is in two groups, the classes of all splits, by way of links."""
    problems = []
    first: dict[tuple[int, int], tuple[int, Path]] = {}
    for number, paths in enumerate(groups):
        for path in filter(Path.exists, paths):
            group, other = first.setdefault(_identity(path), (number, path))
            if group != number:
                problems.append(f"{path} and {other} are the same file in two classes or splits; remove one of them")
    return problems


def look(name: str) -> str:
    """Equal for names that differ in ``LOOK`` only, which macOS and Windows take for one."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def _is_folder(entry: os.DirEntry[Any]) -> bool:
    # of a link that leads in a circle, DirEntry raises an error
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _unreadable(error: OSError) -> DataError:
    return DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable or fix data.root")
