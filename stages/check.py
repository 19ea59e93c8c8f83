"""Checks params.yaml and the paths in it, before DVC removes the outputs of the stages that it will re-run."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Params
from pipeline.errors import CheckpointError, DataError
from stages.common import run


def check(params: Params) -> None:
    if params.data.name == "imagefolder" and not (Path(params.data.root) / "train").is_dir():
        raise DataError(
            f"data.root {params.data.root} has no folder train/; set it to the folder that holds train/<class>/"
        )
    checkpoint = params.teacher.checkpoint
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise CheckpointError(f"teacher.checkpoint {checkpoint} does not exist; correct the path or set it to null")


if __name__ == "__main__":
    run(check)
