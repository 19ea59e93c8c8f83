"""Mistakes of a user: one sentence on stderr that names the place and the remedy, exit code 2, nothing touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from pipeline.store.lock import exclusive
from pipeline.store.paths import LOGS, STUDENT_REPORTS
from pipeline.store.paths import STUDENTS as STUDENTS_FOLDER
from stages.common import run_program
from stages.dvc_files import hash_of
from tests.conftest import ROOT, loss_params
from tests.e2e.repository import set_params, snapshot
from tests.stages.conftest import run_program_here


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The shipped parameters, own images of two classes, and outputs of an earlier run."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copy(ROOT / "params.yaml", folder)
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "photos/train" / name).mkdir(parents=True)
        for i in range(40):
            pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"photos/train/{name}/{i}.jpg")
    set_params(folder, {"data.name": "imagefolder", "data.root": "photos"})
    run(folder, "prepare", expected=0)
    return folder


@pytest.fixture
def workspace(prepared, tmp_path) -> Path:
    """A copy to do wrong in."""
    return shutil.copytree(prepared, tmp_path / "workspace")


def run(folder: Path, stage: str, *arguments: str, expected: int = 2) -> str:
    with contextlib.chdir(folder):
        return run_program_here(stage, *arguments, expected=expected)


def sentence(folder: Path, stage: str, *arguments: str) -> str:
    before = snapshot(folder)
    last = run(folder, stage, *arguments).rstrip("\n").splitlines()
    errors = [line for line in last if line.startswith("error: ")]
    assert len(errors) == 1
    assert last[-1] == errors[0]
    assert not any("Traceback" in line for line in last)
    assert snapshot(folder) == before
    return errors[0]


def test_an_unknown_key(workspace):
    set_params(workspace, {"heda.fractoin": 0.4})
    assert "params.yaml: heda.fractoin is not a known key; did you mean fraction?" in sentence(workspace, "prepare")


def test_a_fraction_out_of_range(workspace):
    set_params(workspace, {"heda.fraction": 1.5})
    assert "params.yaml: heda.fraction is 1.5" in sentence(workspace, "prepare")


def test_groups_that_overlap(workspace):
    set_params(workspace, {"energy.low_fraction": 0.7, "energy.high_fraction": 0.4})
    assert "low_fraction + high_fraction is 1.1; lower one" in sentence(workspace, "prepare")


@pytest.mark.parametrize("stage", ["check", "prepare"])
def test_a_missing_data_folder(workspace, stage):
    set_params(workspace, {"data.root": "nowhere"})
    message = sentence(workspace, stage)
    assert "nowhere" in message
    assert "set it to" in message


@pytest.mark.parametrize("root", [".", "/", ".."])
def test_a_data_folder_without_a_name_of_its_own(workspace, root):
    set_params(workspace, {"data.root": root})
    assert f"error: {root} has no folder train/" in sentence(workspace, "check")


@pytest.mark.parametrize("stage", ["check", "prepare"])
def test_a_class_with_one_image(workspace, stage):
    (workspace / "photos/train/cat").mkdir()
    shutil.copy(workspace / "photos/train/ant/0.jpg", workspace / "photos/train/cat")
    assert "class 'cat' has 1 training image(s)" in sentence(workspace, stage)


def test_a_truncated_image(workspace):
    path = workspace / "photos/train/bee/7.jpg"
    path.write_bytes(path.read_bytes()[:300])
    message = sentence(workspace, "prepare")
    assert "photos/train/bee/7.jpg cannot be decoded" in message
    assert "replace or remove the file" in message


@pytest.mark.parametrize("stage", ["check", "train_teacher"])
def test_a_checkpoint_of_the_wrong_network(workspace, stage):
    torch.save(models.build("resnet14", 2).state_dict(), workspace / "teacher.pth")
    set_params(workspace, {"teacher.network": "resnet8", "teacher.checkpoint": "teacher.pth"})
    message = sentence(workspace, stage)
    assert "teacher.pth is not a checkpoint of this network" in message
    assert "params.yaml" in message


@pytest.mark.parametrize("stage", ["check", "train_teacher"])
def test_a_teacher_of_fewer_classes_than_the_images_have(workspace, stage):
    torch.save(models.build("resnet8", 1).state_dict(), workspace / "teacher.pth")
    set_params(workspace, {"teacher.network": "resnet8", "teacher.checkpoint": "teacher.pth"})
    assert "it has fc.weight as [1, 64] in place of [2, 64]; correct" in sentence(workspace, stage)


def test_files_whose_names_differ_in_case_only_are_refused_before_dvc_removes_anything(workspace):
    shutil.copy(workspace / "photos/train/ant/1.jpg", workspace / "photos/train/ant/1.JPG")
    assert "1.jpg and photos/train/ant/1.JPG differ in capitals, " in sentence(workspace, "check")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(workspace):
    (workspace / "photos/train/ant").chmod(0)
    try:
        assert "photos/train/ant cannot be read (Permission denied); make it readable" in sentence(workspace, "prepare")
    finally:
        (workspace / "photos/train/ant").chmod(0o755)


@pytest.mark.parametrize(
    ("number", "path", "message"),
    [
        (errno.ENOSPC, None, "error: No space left on device; free space there and run the same command again\n"),
        (errno.EACCES, "a/b", "error: a/b: Permission denied; give this user the right to it\n"),
        (errno.ENAMETOOLONG, "a/b", "error: a/b: File name too long; use a shorter name\n"),
        (errno.EROFS, "a/b", "error: a/b: Read-only file system; run on a disk that can be written\n"),
    ],
)
def test_what_the_disk_refuses_is_one_sentence(number, path, message, capsys):
    def fail():
        raise OSError(number, os.strerror(number), path)

    with pytest.raises(SystemExit) as caught:
        run_program(fail)
    assert caught.value.code == 2
    assert capsys.readouterr().err == message


def test_an_error_of_the_system_that_is_a_defect_keeps_its_traceback():
    def fail():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a/b")

    with pytest.raises(FileNotFoundError):
        run_program(fail)


def test_a_checkpoint_that_cannot_classify_these_images(workspace):
    torch.save(models.build("resnet8", 2).state_dict(), workspace / "teacher.pth")
    set_params(
        workspace, {"teacher.network": "resnet8", "teacher.checkpoint": "teacher.pth", "teacher.minimum_top1": 1}
    )
    assert "teacher.pth reaches validation top-1" in sentence(workspace, "train_teacher")


def test_a_missing_checkpoint(workspace):
    set_params(workspace, {"teacher.checkpoint": "checkpoints/none.pth"})
    assert "checkpoint checkpoints/none.pth does not exist; correct the path" in sentence(workspace, "check")


def test_missing_weights_that_the_student_is_to_start_from(workspace):
    set_params(workspace, {"distill.initial_weights": "checkpoints/none.pth"})
    assert "checkpoint checkpoints/none.pth does not exist; correct the path" in sentence(workspace, "check")


def test_an_unknown_network(workspace):
    set_params(workspace, {"teacher.network": "resnet21"})
    assert "params.yaml: teacher.network: There is no network resnet21" in sentence(workspace, "train_teacher")


def test_a_home_folder_that_the_benchmark_could_not_write(workspace, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(Path.home())))
    assert ".cache/energykd cannot be written, but the stage benchmark needs it; set HOME" in sentence(
        workspace, "check"
    )


@pytest.mark.parametrize("name", ["", ".cache"])
def test_a_home_that_is_a_file(workspace, monkeypatch, tmp_path, name):
    home = tmp_path / "home"
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).touch()
    monkeypatch.setenv("HOME", str(home))
    assert "home/.cache/energykd cannot be written, but the stage benchmark" in sentence(workspace, "check")


def test_a_gpu_that_is_not_there(workspace):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    set_params(workspace, {"device": "cuda"})
    assert "torch sees no GPU here; set device to auto or cpu" in sentence(workspace, "train_teacher")


def test_an_unknown_student_before_the_teacher_is_trained(workspace):
    set_params(workspace, {"distill.network": "resnet8x"})
    assert "params.yaml: distill.network: There is no network resnet8x" in sentence(workspace, "check")


def test_a_network_that_cannot_take_the_images_before_the_teacher_is_trained(workspace):
    set_params(workspace, {"distill.network": "torchvision:alexnet"})
    assert "params.yaml: distill.network cannot take images of 32 x 32 pixels" in sentence(workspace, "check")


@pytest.mark.parametrize(("block", "stage"), [("teacher", "check"), ("distill", "check"), ("teacher", "train_teacher")])
def test_batches_of_one_image_that_a_network_cannot_be_trained_on(workspace, block, stage):
    set_params(workspace, {f"{block}.network": "torchvision:mobilenet_v2", f"{block}.training.batch_size": 1})
    message = sentence(workspace, stage)
    assert f"params.yaml: {block}.training.batch_size is 1, but MobileNetV2 cannot be trained on single" in message
    assert "; set it to 2 or more" in message


@pytest.mark.parametrize("stage", ["check", "prepare"])
def test_a_tail_longer_than_the_data(workspace, stage):
    set_params(workspace, {"data.imbalance_factor": 500})
    message = sentence(workspace, stage)
    assert "data.imbalance_factor 500 leaves class 'bee' none of" in message
    assert "lower it to at most" in message


def test_soft_labels_that_would_fill_too_much_before_the_teacher_is_trained(workspace):
    set_params(workspace, {"soft_labels.views": 4, "soft_labels.max_gb": 1e-9})
    message = sentence(workspace, "check")
    assert "params.yaml: soft_labels would fill" in message
    assert "more than max_gb 1e-09; lower views or classes, or raise max_gb" in message


def test_a_further_teacher_of_other_classes_before_the_teacher_is_trained(workspace):
    torch.save(models.build("resnet8", 5).state_dict(), workspace / "other.pth")
    further = {"network": "resnet8", "checkpoint": "other.pth"}
    set_params(workspace, {"soft_labels.views": 4, "soft_labels.teachers": [further]})
    assert "it has fc.weight as [5, 64] in place of [2, 64]; correct" in sentence(workspace, "check")


STUDENTS = {
    "a b": ({"a b": {}}, "params.yaml: students: 'a b' cannot name a student, because it names folders and stages"),
    "1": ({1: {}, "small": {}}, "params.yaml: students: 1 cannot name a student"),  # which DVC drops without a word
    ".": ({".": {}}, "params.yaml: students: '.' cannot name a student"),
    "..": ({"..": {}}, "params.yaml: students: '..' cannot name a student"),
    "x@y": ({"x@y": {}}, "params.yaml: students: 'x@y' cannot name a student"),
    "teacher": ({"teacher": {}}, "params.yaml: students: no student can be called teacher; choose another name"),
    "none": ({}, "params.yaml: students: it must name one student or more, for example `student: {}`; add a line"),
    "list": (["small"], "params.yaml: students: it must name one student or more"),
    "no value": ({"small": None}, "write `small: {}` for a student that takes everything from distill"),
    "unknown key": (
        {"small": {"netwrk": "resnet8"}},
        "students.small.netwrk is not a known key; did you mean network?",
    ),
    "wrong value": ({"a": {}, "b": {"training": {"epochs": 0}}}, "params.yaml: students.b.training.epochs is 0"),
}


@pytest.mark.parametrize(("stage", "name"), [("check", None), ("prepare", None), ("distill", "small")])
@pytest.mark.parametrize(("entries", "words"), STUDENTS.values(), ids=STUDENTS)
def test_wrong_students(workspace, entries, words, stage, name):
    set_params(workspace, {"students": entries})
    assert words in sentence(workspace, stage, *filter(None, [name]))


@pytest.mark.parametrize(("stage", "name"), [("check", None), ("distill", "small")])
def test_parameters_without_students_which_dvc_cannot_explain(workspace, stage, name):
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("students:  ", "studnts:  "))
    assert "studnts is not a known key; did you mean students?" in sentence(workspace, stage, *filter(None, [name]))
    (workspace / "params.yaml").write_text(re.sub(r"^students:.*\n  student: \{\}\n", "", text, flags=re.MULTILINE))
    assert "params.yaml: students is missing; add it" in sentence(workspace, stage, *filter(None, [name]))


def test_an_unknown_network_in_the_third_entry_before_the_teacher_is_trained(workspace):
    set_params(workspace, {"students": {"a": {}, "b": {"network": "resnet14"}, "c": {"network": "resnet9"}}})
    message = sentence(workspace, "check")
    assert "params.yaml: students.c.network: There is no network resnet9: the closest names are" in message


@pytest.mark.parametrize("name", ["nobody", "teacher", "", "../data", "$(touch owned)", "\x1b[2J", "x" * 300])
def test_a_student_that_is_not_there(workspace, name):
    words = f"params.yaml has no student {name!r}; choose from student"
    assert sentence(workspace, "distill", name) == f"error: {words}"
    for stage in ("export", "evaluate"):
        if name != "teacher":
            assert sentence(workspace, stage, name) == f"error: {words}, teacher"
    assert [path.name for path in workspace.glob(".checkpoints/*.lock")] == ["prepare.lock"]
    assert {path.parent for path in workspace.rglob("*.log")} == {workspace / LOGS}


@pytest.mark.parametrize("stage", ["distill", "export", "evaluate"])
def test_a_student_whose_name_cannot_be_one(workspace, stage):
    set_params(workspace, {"students": {"a b": {}}})
    assert "params.yaml: students: 'a b' cannot name a student" in sentence(workspace, stage, "a b")


@pytest.mark.parametrize("stage", ["distill", "export", "evaluate"])
def test_a_stage_of_students_needs_a_name(workspace, stage):
    before = snapshot(workspace)
    said = run(workspace, stage)
    assert said.startswith(f"usage: python -m stages.{stage}")
    assert "the following arguments are required: name" in said
    assert snapshot(workspace) == before


@pytest.fixture
def with_old_student(workspace) -> Path:
    """Two students lie there, of which params.yaml names one, and dvc.lock lists the outputs of both."""
    outs = []
    for name in ("student", "old"):
        for folder in (STUDENTS_FOLDER / name / "network", STUDENT_REPORTS / name / "curves"):
            (workspace / folder).mkdir(parents=True)
            (workspace / folder / "file").touch()
            outs.append({"path": folder.as_posix(), "md5": hash_of(workspace / folder)})
    lock = {"schema": "2.0", "stages": {"distill@old": {"cmd": "python -m stages.distill old", "outs": outs}}}
    (workspace / "dvc.lock").write_text(json.dumps(lock))
    return workspace


def test_the_folders_of_a_student_that_is_not_listed_any_more_are_removed_by_check(with_old_student):
    before = snapshot(with_old_student)
    said = run(with_old_student, "check", expected=0)
    for folder in (STUDENTS_FOLDER / "old", STUDENT_REPORTS / "old"):
        assert f"{folder} is removed, because params.yaml has no such student; DVC restores it" in said
        assert not (with_old_student / folder).exists()
    assert snapshot(with_old_student) == {path: value for path, value in before.items() if "/old/" not in path}
    assert "is removed" not in run(with_old_student, "check", expected=0)


def test_what_is_left_of_a_training_that_failed_is_removed_without_a_promise(with_old_student):
    failed = with_old_student / STUDENT_REPORTS / "failed/curves"
    failed.mkdir(parents=True)
    said = run(with_old_student, "check", expected=0)
    assert f"{STUDENT_REPORTS}/failed is removed, because params.yaml has no such student\n" in said
    assert not failed.parent.exists()


@pytest.mark.parametrize(
    "path",
    [
        STUDENTS_FOLDER / "byhand/network",
        STUDENTS_FOLDER / "old/network",
        STUDENTS_FOLDER / "old/notes.md",
        STUDENTS_FOLDER / "notes/a.txt",
        STUDENT_REPORTS / "todo.md",
    ],
    ids=str,
)
def test_what_dvc_cannot_restore_is_left_and_named(with_old_student, path):
    """A network that was trained by hand, also in place of one that dvc has, and files of the user."""
    file = with_old_student / path / "file" if path.name == "network" else with_old_student / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    said = run(with_old_student, "check", expected=0)
    root = STUDENT_REPORTS if path.name == "todo.md" else STUDENTS_FOLDER
    assert f"{path} belongs to no student of params.yaml, and DVC cannot restore it, so it is left" in said
    assert f"move it out of {root}, or remove it" in said
    assert file.read_text() == "mine"
    assert (with_old_student / STUDENTS_FOLDER / "old/network").exists() == ("old" in path.parts)


def test_no_folder_is_removed_while_something_else_is_wrong(with_old_student):
    set_params(with_old_student, {"distill.network": "resnet9"})
    assert "There is no network resnet9" in sentence(with_old_student, "check")


def test_a_student_that_a_stage_still_works_on_is_not_removed(with_old_student):
    with exclusive(with_old_student / ".checkpoints/distill-old.lock", "training"):
        assert "running stage distill of old here" in sentence(with_old_student, "check")


def test_stages_of_a_feature_loss_that_do_not_exist_before_the_teacher_is_trained(workspace):
    set_params(
        workspace, {"distill.loss": loss_params("at", student_stages=["layer1", "layer9", "layer3"]).model_dump()}
    )
    message = sentence(workspace, "check")
    assert 'params.yaml: distill.loss: ResNet has no submodule "layer9": the closest names are layer' in message


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("nowhere.yaml", "nowhere.yaml does not exist; correct the path"),
        ("params.yaml", "params.yaml: "),
    ],
)
def test_a_file_that_is_not_a_study(workspace, study, words):
    assert words in sentence(workspace, "ablation", study)
