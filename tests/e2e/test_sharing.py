"""Two people, two clones, one DVC remote: own images and weights are pushed by one and pulled by the other."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from scmrepo.git import Git

import models
from tests.conftest import ROOT
from tests.e2e.repository import UP_TO_DATE, changed_stages, command, git, run_here, set_params, snapshot
from tests.remote.conftest import make_python, server_base  # noqa: F401  (fixtures)
from tests.remote.server import Server, serving
from tests.torture.clone import clone as clone_repository

SMALL = {
    "device": "cpu",
    "data.name": "imagefolder",
    "data.image_size": 16,
    "data.augmentation.crop.padding": 2,
    "teacher.network": "resnet8",
    "teacher.checkpoint": "checkpoints/own/teacher.safetensors",
    "teacher.minimum_top1": 0.0,  # of weights as they are drawn
}
LAST = "train_teacher"  # the stages behind it use no images, and weights of others only as it does


def write_images(train: Path) -> None:
    """40 JPEG files of 32 pixels in each of two classes."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("ant", "bee")):
        (train / name).mkdir(parents=True)
        for i in range(40):
            pixels = generator.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, channel] += 150
            Image.fromarray(pixels).save(train / name / f"{i}.jpg")


def write_weights(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(models.build("resnet8", 2).state_dict(), path)


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def mine(tmp_path_factory, own_home) -> Path:
    """Images and weights that DVC keeps, a teacher made with them, committed and pushed to a folder."""
    folder = tmp_path_factory.mktemp("mine")
    clone_repository(folder, SMALL)
    for key in ("name", "email"):
        git(folder, "config", f"user.{key}", "t")  # dvc commits experiments
    write_images(folder / "data/train")
    write_weights(folder / "checkpoints/own/teacher.safetensors")
    command(folder, "dvc", "add", "data/train", "checkpoints/own/teacher.safetensors")
    command(folder, "dvc", "repro", LAST)
    command(folder, "dvc", "remote", "add", "--default", "store", str(tmp_path_factory.mktemp("store")))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "run")
    command(folder, "dvc", "push")
    return folder


@pytest.fixture
def theirs(mine, tmp_path) -> Path:
    """A clone of a colleague, into which nothing was pulled."""
    git(tmp_path, "clone", "--quiet", str(mine), "theirs")
    return tmp_path / "theirs"


def refusal(folder: Path, stage: str = "check") -> str:
    return run_here(folder, stage, expected=2)


@pytest.mark.e2e
def test_a_colleague_pulls_and_nothing_runs_again(mine, theirs):
    sentence = "error: data/train is not in this clone; run `dvc pull`, which gets what data/train.dvc describes\n"
    assert refusal(theirs).endswith(sentence)
    command(theirs, "dvc", "pull", "--allow-missing")  # of stages that did not run here
    assert files_in(theirs / "data/train") == files_in(mine / "data/train")
    assert UP_TO_DATE in command(theirs, "dvc", "repro", LAST).stdout
    assert snapshot(theirs) == snapshot(mine)
    assert git(theirs, "status", "--porcelain") == ""
    run_here(theirs, "check")
    (theirs / "checkpoints/own/teacher.safetensors").unlink()
    assert "error: checkpoints/own/teacher.safetensors is not in this clone" in refusal(theirs)


@pytest.mark.e2e
def test_a_clone_without_images_is_told_how_to_get_back_what_dvc_removed(mine, theirs):
    for name in ("data/train.dvc", "data/.gitignore"):
        (theirs / name).unlink()
    command(theirs, "dvc", "pull", "prepare")
    failed = command(theirs, "dvc", "repro", "prepare", check=False)
    assert failed.returncode != 0
    assert "error: data has no folder train/; put the images there" in failed.stderr
    assert "`dvc checkout artifacts/data` what it removed before this stage)" in failed.stderr
    command(theirs, "dvc", "checkout", "artifacts/data")
    assert files_in(theirs / "artifacts/data") == files_in(mine / "artifacts/data")


@pytest.mark.e2e
def test_an_experiment_outside_of_the_workspace_has_images_that_dvc_keeps(mine):
    command(mine, "dvc", "exp", "run", "--name", "outside", "--temp", "--set-param", "data.seed=2", "prepare")
    assert command(mine, "dvc", "exp", "list", "--name-only").stdout.split() == ["outside"]
    assert changed_stages(mine, "prepare", LAST) == set(), "the workspace is as it was"


@pytest.fixture
def ssh_server(server_base) -> Iterator[Server]:  # noqa: F811
    pytest.importorskip("dvc_ssh", reason="dvc-ssh is not installed (pip install 'energykd[ssh]')")
    server = server_base.variant("Subsystem sftp internal-sftp")
    with serving(server):
        yield server


@pytest.mark.e2e
def test_images_travel_through_a_remote_of_ssh(mine, theirs, ssh_server, tmp_path):
    for folder in (mine, theirs):
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{ssh_server.port}{tmp_path}/store"
        command(folder, "dvc", "remote", "add", "--local", "--force", "machine", url)
        command(folder, "dvc", "remote", "modify", "--local", "machine", "keyfile", str(ssh_server.folder / "user_key"))
    command(mine, "dvc", "push", "--remote", "machine", "data/train.dvc")
    command(theirs, "dvc", "pull", "--remote", "machine", "data/train.dvc")
    assert files_in(theirs / "data/train") == files_in(mine / "data/train")


def test_git_takes_what_dvc_writes_beside_images_and_weights_and_never_those(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    git(tmp_path, "init", "--quiet")
    taken = [
        *("data/README.md", "data/train.dvc", "data/.gitignore", "data/groceries.dvc", "data/groceries/train.dvc"),
        *("data/train/cats.dvc", "checkpoints/README.md", "checkpoints/a.pth.dvc", "checkpoints/.gitignore"),
        "checkpoints/timm/b.safetensors.dvc",
    ]
    ignored = [
        *("data/train/cats/1.jpg", "data/train/1.jpg", "data/1.jpg", "data/groceries/train/cats/1.jpg", "data/x.tar"),
        *("checkpoints/a.pth", "checkpoints/timm/b.safetensors", "checkpoints/timm/deep/c.pth"),
    ]
    for name in [*taken, *ignored]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    git(tmp_path, "add", "--all")
    assert set(git(tmp_path, "ls-files").split()) == {".gitignore", *taken}
    git(tmp_path, "check-ignore", "data/train/cats", "data/groceries/train")  # so git lists none of their files
    assert not any(Git(tmp_path).is_ignored(f"{tmp_path}/{name}/") for name in ("data/groceries", "checkpoints/timm"))


@pytest.mark.parametrize("stage", ["check", "prepare"])
def test_images_that_an_experiment_outside_of_the_workspace_lacks(tmp_path, stage):
    copy = tmp_path / ".dvc/tmp/exps/standalone/tmp1"
    (copy / "data").mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", copy)
    set_params(copy, {"data.name": "imagefolder"})
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)  # noqa: S607
    git(copy, "commit", "--quiet", "--allow-empty", "--message", "empty")
    assert "needs `dvc add data/train`, or --copy-paths data/train)" in refusal(copy, stage)


@pytest.mark.parametrize("kept", ["data.dvc", "data/val.dvc", "data/train/bee.dvc"])
def test_what_dvc_keeps_and_nobody_pulled_is_never_left_out_without_a_word(tmp_path, kept):
    write_images(tmp_path / "data/train")
    shutil.rmtree(tmp_path / "data/train/bee")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"data.name": "imagefolder"})
    if kept == "data.dvc":
        shutil.rmtree(tmp_path / "data")
    (tmp_path / kept).touch()
    missing = kept.removesuffix(".dvc")
    assert f"error: {missing} is not in this clone; run `dvc pull`, which gets what {kept}" in refusal(
        tmp_path, "prepare"
    )
