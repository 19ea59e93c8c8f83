from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.data.sources import Source, SourceSplit
from pipeline.data.splits import split
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
