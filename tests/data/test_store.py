from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import make_store, read_card, read_split
from pipeline.errors import DataError, SpaceError
from tests.conftest import squashed


def folder_params(params, root, **changes):
    return params.data.model_copy(update={"name": "imagefolder", "root": str(root), "image_size": 16, **changes})


def test_pixels_labels_and_card_survive_packing(params, image_folder, tmp_path):
    data_params = folder_params(params, image_folder)
    card = make_store(tmp_path / "store", data_params)
    assert read_card(tmp_path / "store") == card
    assert sum(count for _, count in card.counts) == 48
    train = read_split(tmp_path / "store", "train")
    assert train.images.shape == (card.counts.train, 16, 16, 3)
    source = open_source(data_params)
    index = split(source, data_params)["train"][1][0]
    expected = source.splits["train"].pixels(int(index), squashed(16))
    np.testing.assert_array_equal(train.images[0], np.asarray(expected))


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_packed_in_the_form_that_is_asked_for(params, image_folder, tmp_path, resize, channels):
    form = {"image_size": (20, 12), "channels": channels, "resize": resize, "interpolation": "bicubic"}
    data_params = folder_params(params, image_folder, **form)
    card = make_store(tmp_path / "store", data_params)
    assert card.image.shape == (channels, 20, 12)
    assert len(card.mean) == len(card.std) == channels
    val = read_split(tmp_path / "store", "val").images
    assert val.shape[1:] == (20, 12, channels)
    source = open_source(data_params)
    index = int(split(source, data_params)["val"][1][0])
    np.testing.assert_array_equal(val[0], source.splits["train"].pixels(index, card.image))


def test_images_of_val_and_test_that_are_in_train_too_are_counted(params, image_folder, tmp_path, caplog):
    make_store(tmp_path / "store", folder_params(params, image_folder))
    assert not caplog.messages
    for name in ("ant", "bee", "cat"):
        for split_name, count in (("val", 1), ("test", 2)):
            folder = image_folder / split_name / name
            folder.mkdir(parents=True)
            for path in sorted((image_folder / "train" / name / "nested").iterdir())[: count + 1]:
                shutil.copy(path, folder)
            next(folder.iterdir()).unlink()
            Image.new("RGB", (9, 9), (count, count, 99)).save(folder / "new.png")
    make_store(tmp_path / "again", folder_params(params, image_folder))
    val, test = caplog.messages
    assert "3 of 6 images of the split val are also in train, pixel by pixel" in val
    assert "6 of 9 images of the split test are also in train" in test


def test_the_fingerprint_changes_with_the_form_of_the_images(params, image_folder, tmp_path):
    forms = [{}, {"resize": "crop"}, {"interpolation": "bicubic"}, {"channels": 1}, {"image_size": (16, 12)}]
    for storage in ("packed", "files"):
        found = {
            make_store(tmp_path / "store", folder_params(params, image_folder, storage=storage, **form)).fingerprint
            for form in forms
        }
        assert len(found) == len(forms)


def test_statistics_are_those_of_the_training_split(params, image_folder, tmp_path):
    card = make_store(tmp_path / "store", folder_params(params, image_folder))
    pixels = read_split(tmp_path / "store", "train").images / 255
    np.testing.assert_allclose(card.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(card.std, pixels.std(axis=(0, 1, 2)), atol=1e-6)


def test_the_fingerprint_changes_with_a_pixel_and_only_then(params, image_folder, tmp_path):
    data_params = folder_params(params, image_folder)
    first, again = make_store(tmp_path / "a", data_params), make_store(tmp_path / "b", data_params)
    Image.new("RGB", (9, 9), "red").save(image_folder / "train" / "ant" / "nested" / "0.png")
    changed = make_store(tmp_path / "c", data_params)
    assert first.fingerprint == again.fingerprint != changed.fingerprint


def test_a_bad_image_leaves_the_earlier_store_untouched(params, image_folder, tmp_path):
    data_params = folder_params(params, image_folder)
    card = make_store(tmp_path / "store", data_params)
    (image_folder / "train" / "cat" / "nested" / "3.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"3\.jpg"):
        make_store(tmp_path / "store", data_params)
    assert read_card(tmp_path / "store") == card
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_several_bad_images_are_all_listed(params, image_folder, tmp_path):
    bad = [image_folder / "train" / "cat" / "nested" / name for name in ("3.jpg", "5.jpg")]
    for path in bad:
        path.write_bytes(b"")
    listed = tmp_path / "bad.txt"
    with pytest.raises(
        DataError, match=r"2 of 48 images cannot be used, all listed in .*bad\.txt, the first: .*3\.jpg"
    ):
        make_store(tmp_path / "store", folder_params(params, image_folder), bad_list=listed)
    assert [line.split(" ")[0] for line in listed.read_text().splitlines()] == [str(path) for path in bad]
    assert not (tmp_path / "store").exists()


def test_bad_names_are_listed_with_the_bad_images(params, image_folder, tmp_path):
    folder = image_folder / "train" / "cat" / "nested"
    (folder / "3.JPG").write_bytes((folder / "3.jpg").read_bytes())
    (folder / "5.jpg").write_bytes(b"")
    listed = tmp_path / "bad.txt"
    with pytest.raises(DataError, match="2 of 49 images cannot be used, all listed in"):
        make_store(tmp_path / "store", folder_params(params, image_folder), bad_list=listed)
    reasons = listed.read_text().splitlines()
    assert len(reasons) == 2
    assert "differ in capitals" in reasons[0]
    assert "it is empty" in reasons[1]


def test_the_list_of_an_earlier_run_goes(params, image_folder, tmp_path):
    listed = tmp_path / "bad.txt"
    listed.write_text("old.jpg cannot be decoded\n")
    make_store(tmp_path / "store", folder_params(params, image_folder), bad_list=listed)
    assert not listed.exists()


def test_a_list_that_is_not_there_is_not_removed_from_a_read_only_folder(params, image_folder, tmp_path, monkeypatch):
    listed, unlink = tmp_path / "bad.txt", Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path == listed:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    make_store(tmp_path / "store", folder_params(params, image_folder), bad_list=listed)


def test_the_images_are_named_even_if_their_list_cannot_be_written(params, image_folder, tmp_path, monkeypatch):
    for name in ("3.jpg", "5.jpg"):
        (image_folder / "train" / "cat" / "nested" / name).write_bytes(b"")
    monkeypatch.setattr("pathlib.Path.write_text", disk_full)
    listed = tmp_path / "bad.txt"
    message = r"2 of 48 images .* not listed because .*bad\.txt cannot be written \(No space left.*the first: .*3\.jpg"
    with pytest.raises(DataError, match=message):
        make_store(tmp_path / "store", folder_params(params, image_folder), bad_list=listed)
    assert not listed.exists()


def test_progress_counts_the_images_of_all_splits(params, image_folder, tmp_path):
    seen = []
    card = make_store(tmp_path / "store", folder_params(params, image_folder), lambda *step: seen.append(step))
    assert seen == [(0, 48), (card.counts.train, 48), (card.counts.train + card.counts.val, 48), (48, 48)]


def disk_full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("storage", "fails"), [("packed", "_write_npy"), ("files", "pq.write_table")])
def test_a_disk_that_fills_up_leaves_the_earlier_store_untouched(
    params, image_folder, tmp_path, monkeypatch, storage, fails
):
    data_params = folder_params(params, image_folder, storage=storage)
    card = make_store(tmp_path / "store", data_params)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    monkeypatch.setattr(f"pipeline.data.store.{fails}", disk_full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        make_store(tmp_path / "store", data_params)
    assert caught.value.filename == str(tmp_path / "store")
    assert read_card(tmp_path / "store") == card
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "store"]


def test_a_full_disk_is_an_error_and_not_a_signal(params, image_folder, tmp_path):
    """Packing under a limit of the file size, which the system reports as it does a full disk."""
    data_params = folder_params(params, image_folder, image_size=64)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            make_store(tmp_path / "store", data_params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_label_of_no_class_is_refused(params, image_folder, tmp_path, wrong):
    make_store(tmp_path / "store", folder_params(params, image_folder))
    path = tmp_path / "store" / "train_labels.npy"
    labels = np.load(path)
    labels[4] = wrong
    np.save(path, labels)
    with pytest.raises(DataError, match=r"train_labels\.npy does not give each of \d+ images one of 3 classes; run"):
        read_split(tmp_path / "store", "train")


def test_images_of_one_colour_are_refused(params, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "in" / "train" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8)).save(tmp_path / "in" / "train" / name / f"{i}.png")
    with pytest.raises(DataError, match="same value in one channel"):
        make_store(tmp_path / "store", folder_params(params, tmp_path / "in"))


def test_a_store_that_no_disk_can_hold_is_refused_before_it_is_written(params, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.space.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(SpaceError, match=r"the packed images need .* free; free space, lower data\.image_size"):
        make_store(tmp_path / "store", params.data)
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_ends_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no usable train split"):
        read_split(tmp_path, "train")
