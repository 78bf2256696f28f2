from __future__ import annotations

import logging
from itertools import permutations

import pytest
import torch

from mask2former.modeling import matcher as matcher_module
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.matcher import (
    HungarianMatcher,
    Target,
    assign,
    pairwise_dice,
    pairwise_sigmoid_cross_entropy,
)
from tests.helpers import golden


def target(labels: list[int], masks: torch.Tensor) -> Target:
    return Target(labels=torch.tensor(labels, dtype=torch.int64), masks=masks)


def stripes(count: int, size: int = 16) -> torch.Tensor:
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for i in range(count):
        masks[i, :, i * size // count : (i + 1) * size // count] = True
    return masks


def matcher() -> HungarianMatcher:
    return HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=5, num_points=200)


def test_pairwise_costs_equal_the_published_ones() -> None:
    figures = golden.load("losses")
    points, targets = figures["pred_points"], figures["target_points"]
    for ours, name in ((pairwise_dice, "pairwise_dice"), (pairwise_sigmoid_cross_entropy, "pairwise_bce")):
        torch.testing.assert_close(ours(points, targets), figures[name], rtol=1e-6, atol=1e-6)


def test_finds_a_hidden_permutation_in_every_prediction() -> None:
    torch.manual_seed(0)
    masks = stripes(4)
    orders = torch.stack([torch.randperm(6)[:4] for _ in range(3)])  # the query of each target
    logits = torch.full((3, 1, 6, 16, 16), -5.0)
    classes = torch.zeros(3, 1, 6, 5)
    for p, order in enumerate(orders):
        for t, query in enumerate(order.tolist()):
            logits[p, 0, query] += 10 * masks[t]
            classes[p, 0, query, t] = 4
    (assigned,) = matcher()(classes, list(logits), [target([0, 1, 2, 3], masks)])
    assert torch.equal(assigned.queries, orders)
    assert torch.equal(assigned.targets, torch.arange(4).expand(3, -1))


def test_class_decides_between_equal_masks() -> None:
    masks = stripes(1).expand(2, -1, -1)
    classes = torch.tensor([[[[0.0, 5, 0], [5.0, 0, 0]]]])
    (assigned,) = matcher()(classes, [torch.zeros(1, 2, 8, 8)], [target([0, 1], masks)])
    assert assigned.queries.tolist() == [[1, 0]]


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(2, 5, 8, 8)]
    classes = torch.randn(1, 2, 5, 4)
    targets = [target([0, 1], stripes(2)), target([], stripes(0))]
    first, second = matcher()(classes, logits, targets)
    assert first.queries.shape == (1, 2)
    assert second.queries.shape == (1, 0)


def test_more_targets_than_queries_leave_some_without() -> None:
    torch.manual_seed(0)
    (assigned,) = matcher()(
        torch.randn(2, 1, 3, 9), [torch.randn(1, 3, 8, 8)] * 2, [target(list(range(8)), stripes(8))]
    )
    for queries, targets in zip(assigned.queries.tolist(), assigned.targets.tolist(), strict=True):
        assert sorted(queries) == [0, 1, 2]
        assert targets == sorted(set(targets))
        assert len(targets) == 3


@pytest.mark.parametrize("parallel_from", [0, 10**9])
def test_assignments_are_optimal_in_series_and_in_parallel(monkeypatch: pytest.MonkeyPatch, parallel_from: int) -> None:
    monkeypatch.setattr(matcher_module, "_PARALLEL_COSTS", parallel_from)
    generator = torch.Generator().manual_seed(0)
    costs = [torch.rand(3, 4, targets, generator=generator) for targets in (2, 0, 6)]
    for cost, (queries, targets) in zip(costs, assign(costs), strict=True):
        assert queries.shape == targets.shape == (3, min(4, cost.shape[2]))
        wide = cost if cost.shape[1] >= cost.shape[2] else cost.transpose(1, 2)
        orders = list(permutations(range(wide.shape[1]), wide.shape[2]))
        best = [min(sum(problem[order[t], t] for t in range(len(order))) for order in orders) for problem in wide]
        found = cost[torch.arange(3)[:, None], queries, targets].sum(dim=1)
        torch.testing.assert_close(found, torch.tensor(best, dtype=torch.float32))


def test_values_that_are_not_finite_do_not_crash(caplog: pytest.LogCaptureFixture) -> None:
    cost = torch.rand(1, 4, 2)
    cost[0, 1] = float("nan")
    cost[0, 2] = float("inf")
    with caplog.at_level(logging.WARNING):
        ((queries, _),) = assign([cost])
    assert set(queries[0].tolist()) == {0, 3}
    assert "not finite" in caplog.text


def test_packed_targets_cost_the_same() -> None:
    torch.manual_seed(0)
    masks = stripes(3)
    classes, logits = torch.randn(2, 5, 4), [torch.randn(5, 8, 8)] * 2
    costs = []
    for same in (masks, PackedMasks.pack(masks)):
        torch.manual_seed(1)
        costs.append(matcher().cost(classes, logits, Target(labels=torch.tensor([0, 1, 2]), masks=same)))
    assert torch.equal(*costs)


def test_half_precision_is_matched_in_float32() -> None:
    torch.manual_seed(0)
    masks = stripes(2)
    logits = torch.randn(1, 4, 8, 8) * 200  # softplus sums overflow float16
    cost = matcher().cost(torch.randn(1, 4, 3).half(), [logits[0].half()], target([0, 1], masks))
    assert cost.dtype == torch.float32
    assert cost.isfinite().all()


def test_all_costs_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="CLASS_WEIGHT"):
        HungarianMatcher(cost_class=0, cost_mask=0, cost_dice=0, num_points=10)
