from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compute.parts import Parts
from pipeline.data.loader import Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.energy import scoring
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.scoring import Scores, score_images, score_splits, scored_top1
from pipeline.errors import DataError
from pipeline.lineage import Run
from pipeline.portable.accuracy import group_accuracy
from pipeline.store.tables import ROW_BYTES, EnergyLineage, read_table
from pipeline.training.inference import all_logits, inference_batch, predict
from pipeline.training.session import Session

COUNT = 1100  # 4 batches of 256 and one of 76
LINEAGE = EnergyLineage(
    data="a" * 64, teacher="b" * 64, split="train", temperature=4.0, low_threshold=-9.0, high_threshold=-3.0
)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)
    resident = ResidentPixels(pixels, torch.device("cpu"), padding=2)
    return Images(resident, torch.arange(COUNT) % 5, Normalisation([0.5] * 3, [0.25] * 3))


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 5))


@pytest.fixture
def passes(teacher) -> list[int]:
    """Sizes of the batches that went through the teacher."""
    seen: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    return seen


def score(teacher, images, folder, **options) -> Scores:
    """All scores at once."""
    parts = [scores for _, scores in score_images(teacher, images, 4.0, folder, **options)]
    return Scores(*(np.concatenate(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


def table(teacher, images, folder, **options) -> bytes:
    parts = score_images(teacher, images, 4.0, folder / "parts", **options)
    groups = EnergyGroups.fit(parts.column("energy"), 0.2, 0.2)
    scoring._write_table(folder / "energy.parquet", parts, groups.codes, LINEAGE)
    return (folder / "energy.parquet").read_bytes()


def kill_at(part: int):
    """A progress function that ends the process while a part is being scored; parts of one batch."""
    done = 0

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        if done > part * 256:
            raise Killed

    return on_images


def test_scores_are_those_of_the_plain_images_in_order(images, teacher, tmp_path):
    scores = score(teacher, images, tmp_path)
    logits = all_logits(teacher, images).double()
    np.testing.assert_allclose(scores.energy, -4 * torch.logsumexp(logits / 4, dim=1), rtol=1e-5)
    np.testing.assert_allclose(scores.max_logit, logits.max(dim=1).values - logits.mean(dim=1), rtol=1e-4)
    np.testing.assert_allclose(scores.confidence, logits.softmax(dim=1).max(dim=1).values, rtol=1e-5)
    np.testing.assert_array_equal(scores.correct, logits.argmax(dim=1).numpy() == scores.label)
    np.testing.assert_array_equal(scores.label, np.arange(COUNT) % 5)
    assert scores.correct.mean() == pytest.approx(predict(teacher, images).top1)


@pytest.mark.parametrize("batches_per_part", [1, 2, 4])
def test_parts_of_any_size_give_the_scores_of_one_pass_bit_for_bit(images, teacher, tmp_path, batches_per_part):
    whole = score(teacher, images, tmp_path / "whole", batches_per_part=5)
    parts = score(teacher, images, tmp_path / "parts", batches_per_part=batches_per_part)
    assert len(list((tmp_path / "whole").iterdir())) == 1
    assert len(list((tmp_path / "parts").iterdir())) == -(-5 // batches_per_part)
    for name, column in vars(whole).items():
        assert getattr(parts, name).tobytes() == column.tobytes()
        assert getattr(parts, name).dtype == column.dtype


@pytest.mark.parametrize("finished", [1, 3, 4])
def test_a_killed_run_goes_on_with_the_part_it_was_at_and_writes_the_same_table(
    images, teacher, passes, tmp_path, finished
):
    uninterrupted = table(teacher, images, tmp_path / "one", batches_per_part=1)
    with pytest.raises(Killed):
        score(teacher, images, tmp_path / "two/parts", batches_per_part=1, on_images=kill_at(finished))
    assert len(list((tmp_path / "two/parts").glob("*.npz"))) == finished
    passes.clear()
    counts: list[int] = []
    assert table(teacher, images, tmp_path / "two", batches_per_part=1, on_images=counts.append) == uninterrupted
    assert passes == [256, 256, 256, 256, 76][finished:]
    assert sum(counts) == COUNT


@pytest.mark.parametrize("damage", [b"", b"PK no more", None])
def test_a_damaged_part_is_scored_again(images, teacher, passes, tmp_path, damage):
    undamaged = table(teacher, images, tmp_path, batches_per_part=1)
    part = sorted((tmp_path / "parts").iterdir())[1]
    part.write_bytes(part.read_bytes()[:-40] if damage is None else damage)
    passes.clear()
    assert table(teacher, images, tmp_path, batches_per_part=1) == undamaged
    assert passes == [256]


def test_a_part_of_other_images_is_scored_again(images, teacher, passes, tmp_path):
    undamaged = table(teacher, images, tmp_path, batches_per_part=1)
    parts = sorted((tmp_path / "parts").iterdir())
    parts[1].write_bytes(parts[4].read_bytes())
    passes.clear()
    assert table(teacher, images, tmp_path, batches_per_part=1) == undamaged
    assert passes == [256]


def test_a_part_damaged_after_scoring_is_refused_in_one_sentence(images, teacher, tmp_path):
    parts = score_images(teacher, images, 4.0, tmp_path, batches_per_part=1)
    parts.path(parts.rows[2]).write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"000000000512-000000000768\.npz is not readable .*; run `dvc repro` to make it anew$"
    ):
        parts.column("energy")


def test_parts_are_whole_batches(images, teacher, passes, tmp_path):
    parts = score_images(teacher, images, 4.0, tmp_path, batches_per_part=2)
    assert all(len(rows) % inference_batch(images) == 0 for rows in parts.rows[:-1])
    assert passes == [256, 256, 256, 256, 76]


def test_large_images_come_in_smaller_parts(images, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.compute.parts._PIXELS_PER_PART", 600 * 4 * 4)
    parts = score_images(teacher, images, 4.0, tmp_path)
    assert [len(rows) for rows in parts.rows] == [512, 512, 76]


def test_the_table_has_groups_by_exact_rank_and_the_accuracy_of_each(images, teacher, tmp_path):
    with torch.no_grad():
        teacher[4].weight.zero_()  # all energies are equal, so the index decides
    parts = score_images(teacher, images, 4.0, tmp_path / "parts", batches_per_part=2)
    groups = EnergyGroups.fit(parts.column("energy"), 0.25, 0.5)
    scoring._write_table(tmp_path / "energy.parquet", parts, groups.codes, LINEAGE)
    found = read_table(tmp_path / "energy.parquet", EnergyLineage)
    columns = found.columns
    assert found.lineage == LINEAGE
    assert list(columns) == ["index", "label", "energy", "max_logit", "confidence", "correct", "group"]
    dtypes = [column.dtype.name for column in columns.values()]
    assert dtypes == ["int64", "int64", "float32", "float32", "float32", "bool", "int8"]
    np.testing.assert_array_equal(columns["index"], np.arange(COUNT))
    np.testing.assert_array_equal(columns["group"], np.repeat([0, 1, 2], [275, 275, 550]))
    overall, by_group = scored_top1(parts, groups.codes)
    assert overall == float(columns["correct"].mean())
    assert by_group == group_accuracy(columns["correct"], columns["group"])


def test_a_group_without_images_has_no_accuracy(images, teacher, tmp_path):
    parts = score_images(teacher, images, 4.0, tmp_path)
    _, by_group = scored_top1(parts, EnergyGroups.fit(parts.column("energy"), 0.0, 0.5).codes)
    assert by_group["low"] is None
    assert by_group["high"] is not None


def test_scoring_moves_no_batch_statistics(images, teacher, tmp_path):
    teacher.train()
    score(teacher, images, tmp_path)
    assert teacher[1].num_batches_tracked == 0


def test_scoring_leaves_inference_mode_to_itself(images, teacher, tmp_path):
    modes = []
    score(teacher, images, tmp_path, on_images=lambda count: modes.append(torch.is_inference_mode_enabled()))
    assert not any(modes)


def test_progress_counts_every_image(images, teacher, tmp_path):
    counts: list[int] = []
    score(teacher, images, tmp_path, on_images=counts.append)
    assert sum(counts) == COUNT
    score(teacher, images, tmp_path, on_images=counts.append)
    assert sum(counts) == 2 * COUNT


@pytest.mark.parametrize("count", [COUNT, 200_000])
def test_a_table_takes_no_more_space_than_is_asked_for(tmp_path, count):
    generator = np.random.default_rng(0)
    parts = Parts(tmp_path / "parts", count, 65_536, Scores)
    for rows in parts.rows:
        label = generator.integers(0, 2**31, len(rows))
        random = (generator.normal(size=len(rows)).astype(np.float32) for _ in range(3))
        parts.write(rows, [label, *random, generator.random(len(rows)) < 0.5])
    groups = torch.from_numpy(generator.integers(0, 3, count).astype(np.int8))
    scoring._write_table(tmp_path / "energy.parquet", parts, groups, LINEAGE)
    assert (tmp_path / "energy.parquet").stat().st_size < count * ROW_BYTES
    assert sum(part.stat().st_size for part in (tmp_path / "parts").iterdir()) < count * ROW_BYTES


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("bad", [0, 255, 256, 1099])
def test_an_energy_that_is_not_finite_stops_with_the_first_such_image(images, teacher, tmp_path, bad, value):
    bad_pixels = images.centre(torch.tensor([bad]))

    class Overflowing(nn.Module):
        def forward(self, pixels):
            is_bad = (pixels == bad_pixels).flatten(1).all(dim=1)
            logits = teacher(pixels)
            return torch.cat([torch.where(is_bad[:, None], value, logits[:, :1]), logits[:, 1:]], dim=1)

    with pytest.raises(DataError, match=f"not finite, the first at index {bad}; its weights"):
        score(Overflowing(), images, tmp_path, batches_per_part=1)
    assert len(list(tmp_path.iterdir())) == bad // 256


@pytest.mark.parametrize("fractions", [(0.2, 0.3), (0.0, 0.0)])
def test_both_tables_of_a_run_are_written_with_the_groups_of_the_training_images(
    tiny_run, params, tmp_path, caplog, fractions
):
    wanted = params.energy.model_copy(update=dict(zip(("low_fraction", "high_fraction"), fractions, strict=True)))
    counts: list[int] = []
    session = Session(torch.device("cpu"), checkpoints=tmp_path / "checkpoints", on_images=counts.append)
    scored = score_splits(tiny_run, wanted, session)
    made = Run(tiny_run.places)
    train, test = made.energy, made.energy_test  # linked to each other, the data and the teacher
    sizes = made.data.counts
    assert sum(counts) == sizes.train + sizes.test
    np.testing.assert_array_equal(train.columns["energy"], scored.energy)
    np.testing.assert_array_equal(train.columns["group"], scored.groups.codes)
    low, high = (int(sizes.train * fraction) for fraction in fractions)
    assert np.bincount(train.columns["group"], minlength=3).tolist() == [low, sizes.train - low - high, high]
    assert (train.lineage.low_threshold, test.lineage.low_threshold) == (scored.groups.low_threshold,) * 2
    test_energy = torch.from_numpy(test.columns["energy"].copy())
    np.testing.assert_array_equal(test.columns["group"], scored.groups.assign(test_energy))
    assert scored.train_top1 == train.columns["correct"].mean()
    assert scored.test_top1 == test.columns["correct"].mean()
    assert scored.train_group_top1 == group_accuracy(train.columns["correct"], train.columns["group"])
    assert not list((tmp_path / "checkpoints").glob("energy-*/"))
    assert not caplog.text
