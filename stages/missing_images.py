"""Images and weights that are not in this clone: which command of DVC brings them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DataError, NoImagesError
from pipeline.store.paths import DATA

_EXPERIMENTS = ".dvc/tmp/exps/"  # where DVC runs experiments outside of the workspace


def check_pulled(folder: Path) -> None:
    """Check that what DVC keeps of a folder is there, down to the depth at which .gitignore lets .dvc files through.

    Raises:
        DataError: names the first that is missing.
    """
    own = [folder.with_name(f"{folder.name}.dvc")] if folder.name else []  # not of . and /
    for kept in (*own, *sorted(folder.glob("*.dvc")), *sorted(folder.glob("*/*.dvc"))):
        missing = kept.with_suffix("")
        if kept.is_file() and not missing.exists():
            raise DataError(f"{missing} is not in this clone; run `dvc pull`, which gets what {kept} describes")


@contextmanager
def missing_images(root: Path) -> Iterator[None]:
    """Check that the images that DVC keeps are there, and name its commands if those that are read are not.

    Raises:
        DataError: images are missing; raised on entry, or in place of NoImagesError.
    """
    check_pulled(root)
    try:
        yield
    except NoImagesError as error:
        if _EXPERIMENTS in Path.cwd().as_posix():
            train = root / "train"
            advice = f"an experiment outside of the workspace needs `dvc add {train}`, or --copy-paths {train}"
        else:
            advice = f"`dvc pull` gets images that DVC keeps, `dvc checkout {DATA}` what it removed before this stage"
        raise DataError(f"{error} ({advice})") from None
