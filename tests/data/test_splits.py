from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources import Source, SourceSplit
from pipeline.data.splits import class_counts, split
from pipeline.errors import DataError


def source(sizes, **others):
    def part(counts):
        labels = np.repeat(np.arange(len(counts)), counts)
        return SourceSplit(labels, lambda i: Image.new("RGB", (4, 4)))

    names = tuple(f"class{i}" for i in range(len(sizes)))
    return Source(names, {"train": part(sizes), **{name: part(counts) for name, counts in others.items()}}, "", "")


def test_held_out_splits_are_disjoint_complete_and_stratified(params):
    given = source([100, 200, 50])
    members = split(given, params.data)
    indices = {name: part for name, (_, part) in members.items()}
    everything = np.concatenate(list(indices.values()))
    assert sorted(everything) == list(range(350))
    assert {name: origin for name, (origin, _) in members.items()} == dict.fromkeys(members, "train")
    labels = given.splits["train"].labels
    assert np.bincount(labels[indices["test"]]).tolist() == [20, 40, 10]
    assert np.bincount(labels[indices["val"]]).tolist() == [8, 16, 4]


def test_the_seed_decides(params):
    given = source([50, 50])
    first, again = split(given, params.data), split(given, params.data)
    other = split(given, params.data.model_copy(update={"seed": 1}))
    np.testing.assert_array_equal(first["test"][1], again["test"][1])
    assert not np.array_equal(first["test"][1], other["test"][1])


def test_given_splits_are_kept(params):
    members = split(source([30, 30], test=[5, 5]), params.data)
    assert members["test"][0] == "test"
    assert len(members["test"][1]) == 10
    assert members["val"][0] == "train"
    assert len(members["train"][1]) + len(members["val"][1]) == 60


def test_a_class_with_one_image_is_named(params):
    with pytest.raises(DataError, match=r"class 'class1' has 1 training image\(s\).*add images"):
        split(source([30, 1, 30]), params.data)


def test_a_share_smaller_than_the_classes_is_refused(params):
    with pytest.raises(DataError, match=r"data\.test_fraction 0\.2 of 15 images holds out 3, fewer than the 5 classes"):
        split(source([3] * 5), params.data)


@pytest.mark.parametrize("sizes", [[3, 4, 100], [3, 3, 3, 60, 60, 60]])
def test_a_class_that_the_first_split_uses_up_is_named(params, sizes):
    with pytest.raises(DataError, match=r"class 'class\d' has 1 training image\(s\)"):
        split(source(sizes), params.data.model_copy(update={"test_fraction": 0.5}))


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (10.0, [500, 387, 299, 232, 179, 139, 107, 83, 64, 50]),
        (50.0, [500, 323, 209, 135, 87, 56, 36, 23, 15, 10]),
        (100.0, [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]),
    ],
)
def test_the_long_tail_falls_exponentially(factor, expected):
    assert class_counts(500, 10, factor).tolist() == expected


def test_only_the_training_split_gets_a_long_tail(params):
    given = source([1000] * 5)
    settings = params.data.model_copy(update={"imbalance_factor": 10.0})
    plain, tailed = split(given, params.data), split(given, settings)
    labels = given.splits["train"].labels
    for name in ("val", "test"):
        np.testing.assert_array_equal(tailed[name][1], plain[name][1])
        assert len(set(np.bincount(labels[tailed[name][1]]))) == 1
    kept = tailed["train"][1]
    assert np.bincount(labels[kept]).tolist() == class_counts(720, 5, 10.0).tolist()
    assert set(kept) <= set(plain["train"][1])
    assert (np.diff(kept) > 0).all()


def test_a_class_smaller_than_its_share_of_the_tail_keeps_all_it_has(params):
    settings = params.data.model_copy(update={"imbalance_factor": 2.0, "max_images_per_class": 100})
    members = split(source([400, 40, 400], val=[9] * 3, test=[9] * 3), settings)
    labels = np.repeat(np.arange(3), [400, 40, 400])
    assert np.bincount(labels[members["train"][1]]).tolist() == [100, 40, 50]


def test_a_tail_that_ends_in_nothing_is_refused(params):
    settings = params.data.model_copy(update={"imbalance_factor": 100.0})
    with pytest.raises(DataError, match=r"imbalance_factor 100 leaves class 'class1' none of \d+ images; lower it"):
        split(source([30, 30]), settings)
