from __future__ import annotations

import random

from pipeline.report.labels import Anchor, Box, place

FRAME = Box(0, 0, 650, 300)


def crowd(count: int, seed: int) -> list[Anchor]:
    """Marks of a typical plot: near each other in x, few levels in y, labels of 110 to 170 points."""
    generator = random.Random(seed)
    levels = [80.0, 95.0, 150.0]
    return [
        Anchor(
            generator.uniform(120, 420),
            generator.choice(levels),
            generator.uniform(3, 9),
            generator.uniform(110, 170),
            9,
        )
        for _ in range(count)
    ]


def test_labels_cover_neither_each_other_nor_marks_nor_leave_the_frame() -> None:
    for seed in range(3):
        anchors = crowd(9, seed)
        boxes = place(anchors, FRAME)
        assert len(boxes) == len(anchors)
        for i, box in enumerate(boxes):
            assert abs(box.overlap(FRAME) - anchors[i].width * anchors[i].height) < 1e-6
            assert all(box.overlap(other) == 0 for other in boxes[i + 1 :])
            assert all(box.overlap(anchor.marker) == 0 for anchor in anchors)


def test_lone_label_stands_right_of_its_mark() -> None:
    (box,) = place([Anchor(100, 100, 5, 80, 10)], FRAME)
    assert 105 < box.left < 112
    assert box.bottom < 100 < box.top


def test_placement_is_deterministic() -> None:
    assert place(crowd(9, 3), FRAME) == place(crowd(9, 3), FRAME)


def test_no_marks_need_no_labels() -> None:
    assert place([], FRAME) == []
