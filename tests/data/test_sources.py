from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources import open_source
from pipeline.errors import DataError


def source_of(params, **changes):
    return open_source(params.data.model_copy(update=changes))


def test_digits_are_the_real_scans(params):
    source = source_of(params)
    train = source.splits["train"]
    assert len(train.labels) == 1797
    assert source.class_names == tuple("0123456789")
    image = train.read(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert np.asarray(image).max() > 200


def test_an_image_folder_gives_sorted_classes_and_rgb_images(params, image_folder):
    source = source_of(params, name="imagefolder", root=str(image_folder))
    assert source.class_names == ("ant", "bee", "cat")
    assert set(source.splits) == {"train"}
    train = source.splits["train"]
    assert np.bincount(train.labels).tolist() == [16, 16, 16]
    assert {train.read(i).mode for i in range(48)} == {"RGB"}


def test_given_val_and_test_folders_are_used(params, image_folder):
    for name in ("val", "test"):
        (image_folder / name / "bee").mkdir(parents=True)
        Image.new("RGB", (5, 5)).save(image_folder / name / "bee" / "x.png")
    source = source_of(params, name="imagefolder", root=str(image_folder))
    assert source.splits["test"].labels.tolist() == [1]


def test_images_are_turned_upright_by_their_exif_orientation(params, image_folder):
    path = image_folder / "train" / "ant" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(path, exif=exif)
    train = source_of(params, name="imagefolder", root=str(image_folder)).splits["train"]
    assert (10, 30) in {train.read(i).size for i in range(17)}


def test_a_missing_folder_is_one_sentence(params, tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a folder; set it to"):
        source_of(params, name="imagefolder", root=str(tmp_path / "nowhere"))


def test_a_folder_without_train_is_one_sentence(params, tmp_path):
    with pytest.raises(DataError, match="has no folder train/"):
        source_of(params, name="imagefolder", root=str(tmp_path))


def test_a_class_that_only_the_test_folder_has_is_one_sentence(params, image_folder):
    (image_folder / "test" / "dog").mkdir(parents=True)
    with pytest.raises(DataError, match=r"dog is a class that train/ does not have"):
        source_of(params, name="imagefolder", root=str(image_folder))


def test_a_truncated_image_is_named(params, image_folder):
    path = image_folder / "train" / "bee" / "nested" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    train = source_of(params, name="imagefolder", root=str(image_folder)).splits["train"]
    with pytest.raises(DataError, match=r"bee/nested/1\.jpg cannot be decoded .*; replace or remove the file"):
        [train.read(i) for i in range(48)]


def test_a_16_bit_image_is_named_rather_than_turned_white(params, image_folder):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 256
    Image.fromarray(ramp).save(image_folder / "train" / "ant" / "deep.png")
    train = source_of(params, name="imagefolder", root=str(image_folder)).splits["train"]
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits per channel"):
        [train.read(i) for i in range(49)]


def test_a_class_name_that_cannot_be_shown_is_refused(params, image_folder):
    (image_folder / "train" / "two\nlines").mkdir()
    with pytest.raises(DataError, match="cannot be shown; rename it"):
        source_of(params, name="imagefolder", root=str(image_folder))


def _write_cifar(folder, files, rows_per_file, label_key):
    """The published binary layout, with random pixels; returns each file's MD5."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    sums = {}
    for name in files:
        content = {
            "data": generator.integers(0, 256, (rows_per_file, 3072), dtype=np.uint8),
            label_key: generator.integers(0, 3, rows_per_file).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: S324  the format's own checksum
    return sums


def test_cifar10_is_read_from_a_local_root_with_its_checksums(params, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    sums = _write_cifar(folder, ["data_batch_1", "test_batch"], 6, "labels")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    source = source_of(params, name="cifar10", root=str(tmp_path))
    assert source.class_names == ("a", "b", "c")
    assert {name: len(split.labels) for name, split in source.splits.items()} == {"train": 6, "test": 6}
    assert source.splits["test"].read(3).size == (32, 32)


def test_a_failed_download_says_what_to_put_where(params, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(DataError, match=r"cifar100 could not be downloaded .* by hand"):
        source_of(params, name="cifar100", root=str(tmp_path))
