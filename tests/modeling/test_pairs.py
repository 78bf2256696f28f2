from __future__ import annotations

import torch

from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.matcher import Assignment
from mask2former.modeling.pairs import Pairs
from mask2former.modeling.points import sample_points

# Targets of the first image have 2, 3 and 3 pairs over two predictions, those of the second none and 3.
ASSIGNED = [
    [([0, 4, 2, 5, 1], [1, 0, 2, 1, 2]), ([3], [1])],
    [([1, 3, 0], [2, 0, 1]), ([2, 1], [1, 1])],
]
COPIES = [[2, 3, 3], [0, 3]]


def pairs() -> Pairs:
    return Pairs.of([[Assignment(torch.tensor(q), torch.tensor(t)) for q, t in images] for images in ASSIGNED])


def test_targets_with_as_many_pairs_are_neighbours() -> None:
    found = pairs()
    listed = [
        (b, p, query, target) for b in range(2) for p in range(2) for query, target in zip(*ASSIGNED[p][b], strict=True)
    ]
    rows = list(zip(found.image, found.prediction, found.query, found.target, strict=True))
    assert rows == [listed[n] for n in found.order]
    assert sorted(rows) == sorted(listed)
    assert found.copies.tolist() == [COPIES[b][t] for b, _, _, t in rows]
    assert found.target.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 1, 1, 1]
    assert found.per_image(3) == [8, 3, 0]


def test_each_pair_reads_its_own_target_at_its_own_points() -> None:
    torch.manual_seed(0)
    masks = [torch.rand(3, 8, 12) < 0.5, torch.rand(2, 6, 5) < 0.5]
    found, points = pairs(), torch.rand(11, 7, 2)
    values = found.sample([PackedMasks.pack(image) for image in masks], points)
    for n, (image, target) in enumerate(zip(found.image, found.target, strict=True)):
        alone = sample_points(masks[image][target].float()[None], points[n : n + 1])[0]
        torch.testing.assert_close(values[n], alone)
    none = Pairs.of([[Assignment(*torch.zeros(2, 0, dtype=torch.int64))]])
    assert none.sample([PackedMasks.pack(masks[0])], points[:0]).shape == (0, 7)
