"""Images decoded while they are needed give the numbers of the packed ones."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from pipeline.data.loader import Images, open_images, shuffled_batches
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import StreamedPixels
from pipeline.data.store import FileSplit, PackedSplit, make_store, read_card, read_split
from pipeline.errors import DataError
from tests.conftest import augmented, squashed

CPU = torch.device("cpu")


@pytest.fixture
def settings(params, image_folder):
    changes = {"name": "imagefolder", "root": str(image_folder), "image_size": 16}
    return params.data.model_copy(update=changes)


@pytest.fixture
def stores(settings, tmp_path):
    """The same images in both forms."""
    folders = {storage: tmp_path / storage for storage in ("packed", "files")}
    for storage, folder in folders.items():
        make_store(folder, settings.model_copy(update={"storage": storage}))
    return folders


def opened(folder, name="train", **views) -> Images:
    return open_images(folder, name, CPU, Normalisation.of(read_card(folder)), augmented(**views))


def test_the_two_forms_hold_what_they_say(stores):
    assert isinstance(read_split(stores["packed"], "val"), PackedSplit)
    listed = read_split(stores["files"], "val")
    assert isinstance(listed, FileSplit)
    assert all(str(path).endswith((".jpg", ".png")) for path in listed.paths)
    cards = {storage: read_card(folder) for storage, folder in stores.items()}
    assert {storage: card.storage for storage, card in cards.items()} == {"packed": "packed", "files": "files"}
    for key in ("mean", "std", "counts", "class_names", "train_class_counts"):
        assert getattr(cards["packed"], key) == getattr(cards["files"], key)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_plain_images_are_equal(stores, name):
    packed, streamed = (list(opened(folder, name).batches(7)) for folder in stores.values())
    assert len(packed) == len(streamed) > 0
    for one, other in zip(packed, streamed, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.index, other.index)


def test_an_epoch_of_random_views_is_equal(stores):
    epochs = []
    for folder in stores.values():
        images = opened(folder, padding=2, horizontal_flip=True)
        epochs.append(list(shuffled_batches(images, 8, torch.Generator().manual_seed(3))))
    for one, other in zip(*epochs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)


def test_grey_images_that_are_not_square_are_equal_too(settings, tmp_path):
    form = {"image_size": (10, 14), "channels": 1, "resize": "letterbox"}
    crop = {"name": "resized", "scale": (0.5, 1.0), "ratio": (0.75, 4 / 3)}
    epochs = []
    for storage in ("packed", "files"):
        make_store(tmp_path / storage, settings.model_copy(update={**form, "storage": storage}))
        images = opened(tmp_path / storage, crop=crop, erasing=0.5)
        epochs.append(list(shuffled_batches(images, 8, torch.Generator().manual_seed(3))))
    assert epochs[0][0].images.shape == (8, 1, 10, 14)
    for one, other in zip(*epochs, strict=True):
        assert torch.equal(one.images, other.images)


def test_strong_views_are_equal_and_the_global_generator_is_left_alone(stores):
    found = []
    for folder in stores.values():
        images = opened(folder, padding=2)
        torch.manual_seed(5)
        strong = list(images.strong_views([torch.arange(6), torch.arange(6, 12)], torch.Generator().manual_seed(3)))
        found.append([*strong, torch.rand(2)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_fingerprint_follows_the_content_and_not_the_place(settings, image_folder, tmp_path):
    def fingerprint(root) -> str:
        changed = settings.model_copy(update={"root": str(root), "storage": "files"})
        return make_store(tmp_path / "store", changed).fingerprint

    first = fingerprint(image_folder)
    moved = image_folder.rename(tmp_path / "moved")
    assert fingerprint(moved) == first
    (moved / "train" / "ant" / "nested" / "0.png").write_bytes((moved / "train/ant/nested/2.png").read_bytes())
    assert fingerprint(moved) != first


def test_a_file_that_is_gone_after_prepare_is_named(stores, image_folder):
    (image_folder / "train" / "bee" / "nested" / "3.jpg").unlink()
    with pytest.raises(
        DataError, match=r"bee/nested/3\.jpg cannot be read \(No such file.*run `dvc repro -f prepare`"
    ) as caught:
        for name in ("train", "val", "test"):
            list(opened(stores["files"], name).batches(8))
    assert "\n" not in str(caught.value)


def test_files_are_asked_for_where_there_are_none(params, tmp_path):
    with pytest.raises(DataError, match=r"data\.storage is files, but this data set has no image files"):
        make_store(tmp_path / "store", params.data.model_copy(update={"storage": "files"}))
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_a_quarter_of_the_memory_stays_files(settings, tmp_path, monkeypatch):
    bytes_needed = 48 * 16 * 16 * 3
    for memory, storage in ((4 * bytes_needed, "packed"), (4 * bytes_needed - 4, "files")):
        monkeypatch.setattr(
            "os.sysconf", lambda key, memory=memory: {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": memory // 4}[key]
        )
        assert make_store(tmp_path / storage, settings).storage == storage


def test_a_manifest_does_not_hold_its_paths_as_objects(stores):
    paths = read_split(stores["files"], "train").paths
    assert not isinstance(paths, (list, tuple, np.ndarray))


def streamed(stores) -> StreamedPixels:
    return StreamedPixels(read_split(stores["files"], "train").paths, squashed(16), CPU, 0)


def test_the_workers_end_with_the_pass_and_with_a_consumer_that_stops_early(stores):
    pixels = streamed(stores)
    assert len(list(pixels.fetch([torch.arange(5), torch.arange(3)]))) == 2
    assert multiprocessing.active_children() == []
    stopped = pixels.fetch([torch.arange(4)] * 50)
    next(stopped)
    assert multiprocessing.active_children() != []
    stopped.close()
    assert multiprocessing.active_children() == []


def test_the_workers_end_after_a_bad_file(stores, image_folder):
    for path in (image_folder / "train").rglob("1*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="it is empty"):
        list(streamed(stores).fetch([torch.arange(30)] * 4))
    assert multiprocessing.active_children() == []


def test_a_lone_batch_needs_no_workers(stores):
    batches = streamed(stores).fetch([torch.arange(4)])
    assert next(batches)[0].shape == (4, 16, 16, 3)
    assert multiprocessing.active_children() == []


def test_workers_are_forked_even_where_spawning_is_the_default(stores):
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = streamed(stores).fetch([torch.arange(4)] * 50)
        next(batches)
        assert {type(child).__name__ for child in multiprocessing.active_children()} == {"ForkProcess"}
        batches.close()
    finally:
        multiprocessing.set_start_method(default, force=True)


def test_the_indices_of_a_pass_are_read_as_it_goes(stores):
    read = []

    def endless():
        while True:
            read.append(1)
            yield torch.arange(4)

    batches = streamed(stores).fetch(endless())
    images, places = next(batches)
    assert (images.shape, places.tolist()) == ((4, 16, 16, 3), [0, 1, 2, 3])
    assert len(read) <= 512
    batches.close()
