"""Checks params.yaml as far as possible without computing, before DVC removes outputs or trains anything.

`make repro` runs it first. The stages check what requires decoding every image or downloading images.
"""

import logging
import os
from pathlib import Path

from pipeline.compute.device import choose_device
from pipeline.config import Params, load_params
from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import refuse_unusable
from pipeline.distillation.student import check_networks
from pipeline.evaluation.runnable import check_available
from pipeline.portable.files import remove_all_leftovers
from pipeline.remote import Address, RemoteError
from pipeline.soft_labels.storing import check_size, further_teachers
from pipeline.store.documents import ImageFormat
from pipeline.store.paths import ARTIFACTS, BAD_IMAGES, CHECKPOINTS, FOREIGN_CHECKPOINTS, REPORTS
from stages.common import run_program
from stages.curves import check_repository
from stages.dvc_files import repair_dvc_files
from stages.forecast import unlikely_students
from stages.missing_images import check_pulled, missing_images
from stages.students import remove_unlisted_students

CLASSES_OF_DOWNLOADS = {"cifar10": 10, "cifar100": 100}


def check(params: Params) -> None:
    check_writable_home()  # first, because DVC reads its settings there
    check_repository()
    choose_device(params.device)
    check_available(params.evaluate.runtimes, "params.yaml: evaluate.runtimes")
    check_available(params.benchmark.runtimes, "params.yaml: benchmark.runtimes")
    classes = CLASSES_OF_DOWNLOADS.get(params.data.name)
    if classes is None:
        with missing_images(Path(params.data.root)):
            source = open_source(params.data)
        images = len(split(source, params.data)["train"][1])
        total = sum(len(part.labels) for part in source.splits.values())
        refuse_unusable(source.problems, total, BAD_IMAGES)
        classes = len(source.class_names)
        check_size(params, images, classes)
    check_pulled(FOREIGN_CHECKPOINTS)
    for _ in further_teachers(params, classes, ImageFormat.of(params.data).shape):
        pass  # each is refused where it is wrong
    sizes = check_networks(params, classes, ImageFormat.of(params.data))
    for sentence in unlikely_students(sizes, params):
        logging.warning("%s", sentence)
    students = (student.weights_file for student in params.students.values())
    further = (teacher.checkpoint for teacher in params.soft_labels.teachers)
    for path in sorted({*filter(None, (params.teacher.weights_file, *further, *students))}):
        if FOREIGN_CHECKPOINTS.resolve() not in Path(path).resolve().parents:
            logging.warning("%s lies outside %s/, so DVC does not notice when it changes", path, FOREIGN_CHECKPOINTS)
    # here and in the stages that depend on the folder of all students: DVC decides what to run before they begin
    remove_unlisted_students(params.students)


def check_writable_home() -> None:
    """Check, before anything is trained, that the stage benchmark can lock this machine.

    Raises:
        RemoteError: its folder cannot be written.
    """
    folder = Path.home() / Address().folder
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise RemoteError(
            f"{folder} cannot be written, but the stage benchmark needs it; set HOME to a folder that can"
        )


def main() -> None:
    repair_dvc_files()
    for folder in (ARTIFACTS, REPORTS, CHECKPOINTS):
        remove_all_leftovers(folder)
    check(load_params())  # takes no lock, so a stage may run at the same time


if __name__ == "__main__":
    run_program(main)
