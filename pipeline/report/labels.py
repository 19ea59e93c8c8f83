"""Direct labels of a scatter plot, placed so that they cover neither each other nor a marker nor leave the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = 16
_GAPS = (3.0, 9.0, 17.0, 27.0, 39.0, 53.0, 70.0, 90.0)
_SWEEPS = 6


@dataclass(frozen=True)
class Box:
    """An axis-parallel rectangle in points, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area shared with ``other``."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def grown(self, margin: float) -> Box:
        """The rectangle with ``margin`` on all sides."""
        return Box(self.left - margin, self.bottom - margin, self.right + margin, self.top + margin)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the rectangle that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


@dataclass(frozen=True)
class Anchor:
    """A marker and the size of its label, in points."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def marker(self) -> Box:
        return Box(self.x, self.y, self.x, self.y).grown(self.radius)


def place(anchors: Sequence[Anchor], frame: Box, obstacles: Sequence[Box] = ()) -> list[Box]:
    """One rectangle per anchor for its label.

    Coordinate descent from a deterministic start: each label in turn takes the candidate position that covers least,
    until none moves. Near positions are preferred, to the right before to the left.

    Args:
        frame: the rectangle that labels should stay in.
        obstacles: what labels should not cover besides the markers.
    """
    candidates = [_candidates(anchor) for anchor in anchors]
    fixed = [anchor.marker.grown(1.0) for anchor in anchors] + list(obstacles)
    own = [[_own_cost(a, box, frame, fixed) for box in boxes] for a, boxes in zip(anchors, candidates, strict=True)]
    placed: list[Box | None] = [None] * len(anchors)
    for _ in range(_SWEEPS):
        before = list(placed)
        for i, anchor in enumerate(anchors):
            others = [(anchors[j], box) for j, box in enumerate(placed) if j != i and box is not None]
            costs = [cost + _shared_cost(anchor, box, others) for cost, box in zip(own[i], candidates[i], strict=True)]
            placed[i] = candidates[i][costs.index(min(costs))]
        if placed == before:
            break
    return [box for box in placed if box is not None]


def _candidates(anchor: Anchor) -> list[Box]:
    boxes = []
    for gap in _GAPS:
        for k in range(_DIRECTIONS):
            angle = 2 * math.pi * k / _DIRECTIONS
            x = anchor.x + math.cos(angle) * (anchor.radius + gap + anchor.width / 2)
            y = anchor.y + math.sin(angle) * (anchor.radius + gap + anchor.height / 2)
            boxes.append(Box(x - anchor.width / 2, y - anchor.height / 2, x + anchor.width / 2, y + anchor.height / 2))
    return boxes


def _own_cost(anchor: Anchor, box: Box, frame: Box, fixed: Sequence[Box]) -> float:
    area = anchor.width * anchor.height
    outside = area - box.overlap(frame)
    covered = sum(box.overlap(other) for other in fixed)
    x, y = box.nearest(anchor.x, anchor.y)
    distance = math.hypot(x - anchor.x, y - anchor.y)
    leader = [(anchor.x + t * (x - anchor.x), anchor.y + t * (y - anchor.y)) for t in (0.5, 0.75, 1.0)]
    crossed = sum(
        other.left < px < other.right and other.bottom < py < other.top
        for px, py in leader
        for other in fixed
        if distance > anchor.radius + 6 and other != anchor.marker.grown(1.0)
    )
    leftwards = (anchor.x - (box.left + box.right) / 2) / (anchor.width + 1)
    return 20 * outside + 20 * covered + distance + 15 * crossed + 8 * leftwards


def _shared_cost(anchor: Anchor, box: Box, others: Sequence[tuple[Anchor, Box]]) -> float:
    cost = 0.0
    end = box.nearest(anchor.x, anchor.y)
    for other_anchor, other in others:
        cost += 20 * box.grown(1.5).overlap(other)
        other_end = other.nearest(other_anchor.x, other_anchor.y)
        if _cross((anchor.x, anchor.y), end, (other_anchor.x, other_anchor.y), other_end):
            cost += 40
        cost += 30 * _passes((anchor.x, anchor.y), end, other)
        cost += 30 * _passes((other_anchor.x, other_anchor.y), other_end, box)
    return cost


Point = tuple[float, float]


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the segments ab and cd cross."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _passes(a: Point, b: Point, box: Box) -> bool:
    """Whether the segment ab enters the rectangle, looked at in steps of a sixth."""
    steps = [(a[0] + t / 6 * (b[0] - a[0]), a[1] + t / 6 * (b[1] - a[1])) for t in range(7)]
    return any(box.left < x < box.right and box.bottom < y < box.top for x, y in steps)
