from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import read_card, read_split, write_store
from pipeline.errors import DataError


def pack(folder, data_params):
    source = open_source(data_params)
    return write_store(folder, source, split(source, data_params), data_params)


def folder_params(params, root, **changes):
    return params.data.model_copy(update={"name": "imagefolder", "root": str(root), "image_size": 16, **changes})


def test_pixels_labels_and_card_survive_packing(params, image_folder, tmp_path):
    data_params = folder_params(params, image_folder)
    card = pack(tmp_path / "store", data_params)
    assert read_card(tmp_path / "store") == card
    assert sum(card["counts"].values()) == 48
    train = read_split(tmp_path / "store", "train")
    assert train.images.shape == (card["counts"]["train"], 16, 16, 3)
    source = open_source(data_params)
    index = split(source, data_params)["train"][1][0]
    expected = source.splits["train"].read(int(index)).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(train.images[0], np.asarray(expected))


def test_statistics_are_those_of_the_training_split(params, image_folder, tmp_path):
    card = pack(tmp_path / "store", folder_params(params, image_folder))
    pixels = read_split(tmp_path / "store", "train").images / 255
    np.testing.assert_allclose(card["mean"], pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(card["std"], pixels.std(axis=(0, 1, 2)), atol=1e-6)


def test_given_statistics_replace_the_measured_ones(params, image_folder, tmp_path):
    card = pack(tmp_path / "store", folder_params(params, image_folder, mean=(0.5, 0.4, 0.3)))
    assert card["mean"] == [0.5, 0.4, 0.3]


def test_the_fingerprint_changes_with_a_pixel_and_only_then(params, image_folder, tmp_path):
    data_params = folder_params(params, image_folder)
    first, again = pack(tmp_path / "a", data_params), pack(tmp_path / "b", data_params)
    Image.new("RGB", (9, 9), "red").save(image_folder / "train" / "ant" / "nested" / "0.png")
    changed = pack(tmp_path / "c", data_params)
    assert first["fingerprint"] == again["fingerprint"] != changed["fingerprint"]


def test_a_bad_image_leaves_the_earlier_store_untouched(params, image_folder, tmp_path):
    data_params = folder_params(params, image_folder)
    card = pack(tmp_path / "store", data_params)
    (image_folder / "train" / "cat" / "nested" / "3.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"3\.jpg"):
        pack(tmp_path / "store", data_params)
    assert read_card(tmp_path / "store") == card
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_several_bad_images_are_all_listed(params, image_folder, tmp_path):
    bad = [image_folder / "train" / "cat" / "nested" / name for name in ("3.jpg", "5.jpg")]
    for path in bad:
        path.write_bytes(b"")
    source = open_source(folder_params(params, image_folder))
    members, listed = split(source, params.data), tmp_path / "bad.txt"
    with pytest.raises(
        DataError, match=r"2 of 48 images cannot be used, all listed in .*bad\.txt, the first: .*3\.jpg"
    ):
        write_store(tmp_path / "store", source, members, params.data, bad_list=listed)
    assert [line.split(" ")[0] for line in listed.read_text().splitlines()] == [str(path) for path in bad]
    assert not (tmp_path / "store").exists()


def test_images_of_one_colour_are_refused(params, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "in" / "train" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8)).save(tmp_path / "in" / "train" / name / f"{i}.png")
    with pytest.raises(DataError, match="same value in one channel"):
        pack(tmp_path / "store", folder_params(params, tmp_path / "in"))


def test_a_store_that_no_disk_can_hold_is_refused_before_it_is_written(params, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.store.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(DataError, match="free"):
        pack(tmp_path / "store", params.data)
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_ends_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no usable train split"):
        read_split(tmp_path, "train")
