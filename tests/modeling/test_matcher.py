from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import chain, permutations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling import matcher as matcher_module
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.matcher import (
    HungarianMatcher,
    Prediction,
    Target,
    assign,
    pairwise_costs,
)
from mask2former.modeling.points import random_points, sample_points
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
    for ours, name in zip(pairwise_costs(points, targets), ("pairwise_bce", "pairwise_dice"), strict=True):
        torch.testing.assert_close(ours, figures[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("points", [1, 64, 200])
def test_pairwise_costs_are_exact_for_every_logit(points: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, points) * torch.tensor([1e-3, 1.0, 10.0, 100.0, 1e4]).unsqueeze(1)
    targets = (torch.rand(3, points) < 0.4).float()
    wide = logits.double().unsqueeze(1).expand(-1, 3, -1)
    expected = F.binary_cross_entropy_with_logits(wide, targets.double().expand(5, -1, -1), reduction="none")
    # Elementwise, terms of softplus(x) - x t cancel: the error is one of the logits, not of the cost.
    error = (pairwise_costs(logits, targets)[0] - expected.mean(dim=2)).abs()
    assert (error <= 1e-6 * logits.abs().amax(dim=1, keepdim=True).clamp(min=1)).all()


def predictions(classes: torch.Tensor, masks: list[torch.Tensor]) -> list[Prediction]:
    """Return dicts of class logits (P, B, Q, C+1) and mask logits P times (B, Q, h, w)."""
    return [{"pred_logits": c, "pred_masks": m} for c, m in zip(classes, masks, strict=True)]


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
    assigned = matcher()(predictions(classes, list(logits)), [target([0, 1, 2, 3], masks)])
    for ((queries, targets),), order in zip(assigned, orders, strict=True):
        assert torch.equal(queries, order[targets])
        assert sorted(targets.tolist()) == [0, 1, 2, 3]


def test_class_decides_between_equal_masks() -> None:
    masks = stripes(1).expand(2, -1, -1)
    classes = torch.tensor([[[[0.0, 5, 0], [5.0, 0, 0]]]])
    ((assigned,),) = matcher()(predictions(classes, [torch.zeros(1, 2, 8, 8)]), [target([0, 1], masks)])
    assert dict(zip(*(ids.tolist() for ids in assigned), strict=True)) == {0: 1, 1: 0}


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    predicted = predictions(torch.randn(1, 2, 5, 4), [torch.randn(1, 2, 5, 8, 8)[0]])
    targets = [target([0, 1], stripes(2)), target([], stripes(0))]
    ((first, second),) = matcher()(predicted, targets)
    assert first.targets.tolist() in ([0, 1], [1, 0])
    assert second.queries.shape == second.targets.shape == (0,)


def test_more_targets_than_queries_leave_some_without() -> None:
    torch.manual_seed(0)
    predicted = predictions(torch.randn(2, 1, 3, 9), [torch.randn(1, 3, 8, 8)] * 2)
    for ((queries, targets),) in matcher()(predicted, [target(list(range(8)), stripes(8))]):
        assert sorted(queries.tolist()) == [0, 1, 2]
        assert len(set(targets.tolist())) == 3


@pytest.mark.parametrize("at_once", [1, 4000, 10**9])
def test_predictions_may_differ_in_queries_and_size(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    torch.manual_seed(0)
    masks = stripes(3)
    sizes = [(5, 8), (5, 8), (7, 8), (4, 16), (4, 8)]
    predicted: list[Prediction] = [
        {"pred_logits": torch.randn(1, queries, 4), "pred_masks": torch.randn(1, queries, size, size)}
        for queries, size in sizes
    ]
    matched = matcher()
    monkeypatch.setattr(matcher_module, "values_at_once", lambda device: at_once)
    points = random_points(200, device=torch.device("cpu"))
    monkeypatch.setattr(matcher_module, "random_points", lambda *shape, device: points)
    alone = [matched.cost([p], 0, target([0, 1, 2], masks)) for p in predicted]
    torch.testing.assert_close(matched.cost(predicted, 0, target([0, 1, 2], masks)), torch.cat(alone))
    together = matched(predicted, [target([0, 1, 2], masks)])
    for prediction, (assigned,) in zip(predicted, together, strict=True):
        ((expected,),) = matched([prediction], [target([0, 1, 2], masks)])
        assert torch.equal(assigned.queries, expected.queries)
        assert torch.equal(assigned.targets, expected.targets)


def test_costs_are_weighted_sums() -> None:
    torch.manual_seed(0)
    predicted = predictions(torch.randn(1, 1, 5, 4), [torch.randn(1, 5, 8, 8)])
    wanted = target([2, 0, 1], stripes(3))
    costs = []
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 3, 4)):
        torch.manual_seed(1)
        cost_class, cost_mask, cost_dice = weights
        one = HungarianMatcher(cost_class=cost_class, cost_mask=cost_mask, cost_dice=cost_dice, num_points=50)
        costs.append(one.cost(predicted, 0, wanted))
    torch.testing.assert_close(costs[3], 2 * costs[0] + 3 * costs[1] + 4 * costs[2])
    torch.testing.assert_close(costs[0], -predicted[0]["pred_logits"][0].softmax(dim=1)[:, [2, 0, 1]])
    torch.manual_seed(1)
    points = random_points(50, device=torch.device("cpu")).expand(5, -1, -1)
    read = sample_points(predicted[0]["pred_masks"][0], points), sample_points(stripes(3).float(), points[:3])
    for cost, expected in zip(costs[1:3], pairwise_costs(*read), strict=True):
        torch.testing.assert_close(cost, expected)


@pytest.mark.parametrize("parallel_from", [0, 10**9])
def test_assignments_are_optimal_in_series_and_in_parallel(monkeypatch: pytest.MonkeyPatch, parallel_from: int) -> None:
    monkeypatch.setattr(matcher_module, "_PARALLEL_COSTS", parallel_from)
    generator = torch.Generator().manual_seed(0)
    costs = [[torch.rand(4, targets, generator=generator) for targets in (2, 0, 6)] for _ in range(3)]
    solved = assign(costs)
    assert len(solved) == 3
    for cost, (queries, targets) in zip(chain(*costs), chain(*solved), strict=True):
        assert queries.shape == targets.shape == (min(4, cost.shape[1]),)
        wide = cost if cost.shape[0] >= cost.shape[1] else cost.t()
        orders = permutations(range(len(wide)), wide.shape[1])
        best = min(sum(wide[order[t], t].item() for t in range(len(order))) for order in orders)
        assert cost[queries, targets].sum().item() == pytest.approx(best)


def test_values_that_are_not_finite_do_not_crash(caplog: pytest.LogCaptureFixture) -> None:
    cost = torch.rand(4, 2)
    cost[1] = float("nan")
    cost[2] = float("inf")
    with caplog.at_level(logging.WARNING):
        (((queries, _),),) = assign([[cost]])
    assert set(queries.tolist()) == {0, 3}
    assert "not finite" in caplog.text


def test_packed_targets_cost_the_same() -> None:
    torch.manual_seed(0)
    masks = stripes(3)
    predicted = predictions(torch.randn(2, 1, 5, 4), [torch.randn(1, 5, 8, 8)] * 2)
    costs = []
    for same in (masks, PackedMasks.pack(masks)):
        torch.manual_seed(1)
        costs.append(matcher().cost(predicted, 0, Target(labels=torch.tensor([0, 1, 2]), masks=same)))
    assert torch.equal(*costs)


def test_half_precision_is_matched_in_float32() -> None:
    torch.manual_seed(0)
    masks = stripes(2)
    logits = torch.randn(1, 4, 8, 8) * 200  # softplus sums overflow float16
    predicted = predictions(torch.randn(1, 1, 4, 3).half(), [logits.half()])
    cost = matcher().cost(predicted, 0, target([0, 1], masks))
    assert cost.dtype == torch.float32
    assert cost.isfinite().all()


def test_all_costs_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="CLASS_WEIGHT"):
        HungarianMatcher(cost_class=0, cost_mask=0, cost_dice=0, num_points=10)


FORK = """
import os, torch
from mask2former.modeling import matcher
matcher._PARALLEL_COSTS = 0
costs = [[torch.rand(20, 10) for _ in range(8)]]
matcher.assign(costs)
child = os.fork()
if child == 0:
    matcher.assign(costs)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_process_forked_after_matching_can_match() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
