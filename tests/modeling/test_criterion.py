from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.modeling import matcher as matcher_module
from mask2former.modeling.criterion import SetCriterion, dice, matched_masks, sigmoid_cross_entropy
from mask2former.modeling.matcher import Assignment, HungarianMatcher, Target, assign
from tests.helpers import golden
from tools.baselines.per_layer_criterion import PerLayerCriterion

NAMES = ("loss_ce", "loss_mask", "loss_dice")


def criterion(**changes: float) -> SetCriterion:
    settings = {
        "class_weight": 2.0,
        "mask_weight": 5.0,
        "dice_weight": 5.0,
        "no_object_weight": 0.1,
        "num_points": 64,
        "oversample_ratio": 3.0,
        "importance_sample_ratio": 0.75,
        **changes,
    }
    matcher = HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=5, num_points=64)
    return SetCriterion(num_classes=4, matcher=matcher, **settings)  # type: ignore[arg-type]


def outputs(batch: int = 2, queries: int = 6, aux: int = 2) -> dict:
    torch.manual_seed(0)
    predictions = [
        {
            "pred_logits": torch.randn(batch, queries, 5, requires_grad=True),
            "pred_masks": torch.randn(batch, queries, 8, 8, requires_grad=True),
        }
        for _ in range(aux + 1)
    ]
    return {**predictions[0], "aux_outputs": predictions[1:]}


def targets(*counts: int) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    return [
        Target(
            labels=torch.randint(0, 4, (count,), generator=generator),
            masks=torch.rand(count, 32, 32, generator=generator) < 0.5,
        )
        for count in counts
    ]


def test_mask_losses_equal_the_published_ones() -> None:
    figures = golden.load("losses")
    predicted, wanted = figures["pred_points"], figures["matched_target_points"]
    torch.testing.assert_close(dice(predicted, wanted).sum() / 3, figures["dice_num_masks_3"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        sigmoid_cross_entropy(predicted, wanted).sum() / 3, figures["bce_num_masks_3"], rtol=1e-6, atol=1e-6
    )


def assigned(*queries: list[list[int]], targets: list[list[int]] | None = None) -> list[Assignment]:
    """Return pairs from the queries (P, M) of each image, by default with all targets in order."""
    return [
        Assignment(
            torch.tensor(q), torch.arange(len(q[0])).expand(len(q), -1) if targets is None else torch.tensor(targets)
        )
        for q in queries
    ]


def test_classification_is_a_weighted_mean_over_matched_and_empty_queries() -> None:
    out = outputs(aux=0)
    loss = criterion(class_weight=1.0)
    wanted = targets(2, 1)
    assignments = assigned([[4, 0]], [[3]])
    ours = loss.classification_losses(out["pred_logits"].unsqueeze(0), assignments, wanted)
    classes = torch.full((2, 6), 4)
    classes[0, 4], classes[0, 0] = wanted[0]["labels"]
    classes[1, 3] = wanted[1]["labels"][0]
    weight = torch.tensor([1, 1, 1, 1, 0.1])
    expected = F.cross_entropy(out["pred_logits"].transpose(1, 2), classes, weight)
    torch.testing.assert_close(ours, expected.unsqueeze(0))


def test_every_prediction_has_its_weighted_losses() -> None:
    losses = criterion()(outputs(), targets(2, 3))
    assert list(losses) == [*NAMES, *(n + "_0" for n in NAMES), *(n + "_1" for n in NAMES)]
    double = criterion(class_weight=4.0)
    torch.testing.assert_close(double(outputs(), targets(2, 3))["loss_ce_0"], 2 * losses["loss_ce_0"])
    assert list(criterion(deep_supervision=False)(outputs(), targets(2, 3))) == list(NAMES)


def test_vectorised_losses_equal_a_loop_over_predictions_and_images() -> None:
    out, wanted = outputs(), targets(2, 3)
    loss = criterion(importance_sample_ratio=0.0, oversample_ratio=1.0, num_points=4000)
    masks = [out["pred_masks"], *(o["pred_masks"] for o in out["aux_outputs"])]
    assignments = assigned([[4, 0], [1, 2], [0, 5]], [[3, 1, 2], [0, 1, 2], [5, 4, 3]])
    torch.manual_seed(0)
    ours = loss.mask_losses(matched_masks(out, [out, *out["aux_outputs"]], assignments), assignments, wanted)
    for p in range(3):
        expected = torch.zeros(2)
        for b in range(2):
            for t, query in enumerate(assignments[b].queries[p].tolist()):
                large = F.interpolate(masks[p][b, query][None, None], size=(256, 256), mode="bilinear")[0, 0]
                wanted_mask = F.interpolate(
                    wanted[b]["masks"][t][None, None].float(), size=(256, 256), mode="bilinear"
                )[0, 0]
                expected[0] += sigmoid_cross_entropy(large.flatten(), wanted_mask.flatten())
                expected[1] += dice(large.flatten(), wanted_mask.flatten())
        # 4000 random points against every pixel of a fine grid
        torch.testing.assert_close(ours["loss_mask"][p], expected[0] / 5, rtol=0.05, atol=0)
        torch.testing.assert_close(ours["loss_dice"][p], expected[1] / 5, rtol=0.05, atol=0)


def test_masks_made_once_more_give_the_same_losses_and_gradients() -> None:
    features = torch.randn(2, 5, 32, 32)
    embeddings = [torch.randn(2, 6, 5) for _ in range(3)]
    logits = [torch.randn(2, 6, 5) for _ in range(3)]
    found = []
    for factored in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in (features, *embeddings)]
        predictions = [
            {"pred_logits": c, "pred_masks": torch.einsum("bqe,behw->bqhw", e, leaves[0])}
            for c, e in zip(logits, leaves[1:], strict=True)
        ]
        if factored:
            for prediction, embedding in zip(predictions, leaves[1:], strict=True):
                prediction["pred_masks"] = prediction["pred_masks"].detach()
                prediction["mask_embeddings"] = embedding
            predictions[0]["mask_features"] = leaves[0]
        torch.manual_seed(0)
        losses = criterion()({**predictions[0], "aux_outputs": predictions[1:]}, targets(2, 3))
        found.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), leaves)])
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-6)


def points_by_count(*shape: int, device: torch.device | None = None) -> Tensor:
    """Stand in for `torch.rand`: the same points for every mask, whatever the order of calls."""
    *leading, count, _ = shape
    generator = torch.Generator().manual_seed(count)
    return torch.empty(count, 2).uniform_(generator=generator).expand(*leading, -1, -1).clone()


@pytest.mark.parametrize("counts", [(2, 3), (0, 4), (9, 1)])
def test_losses_and_gradients_equal_those_of_a_loop_over_predictions_and_images(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]
) -> None:
    out, wanted = outputs(), targets(*counts)
    monkeypatch.setattr(torch, "rand", points_by_count)
    ours = criterion()(out, wanted)
    theirs = PerLayerCriterion(num_classes=4, num_points=64)(out, wanted)
    assert ours.keys() == theirs.keys()
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=1e-5, atol=1e-6)
    for mine, other in zip(gradients(ours, out), gradients(theirs, out), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.on_host = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim"):
            self.seen += [] if self.on_host else [name]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("counts", [(2, 3), (0, 0), (9, 1)])
def test_the_host_waits_for_nothing_but_the_costs(monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]) -> None:
    waits = Waits()

    def assign_on_host(costs: Any) -> Any:
        waits.on_host = True
        pairs = assign(costs)
        waits.on_host = False
        return pairs

    monkeypatch.setattr(matcher_module, "assign", assign_on_host)
    out, wanted, loss = outputs(), targets(*counts), criterion()
    with waits:
        gradients(loss(out, wanted), out)
    assert waits.seen == []
    with Waits() as waits:
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert len(waits.seen) >= 2, "the test can fail"


def gradients(losses: dict[str, Tensor], out: dict) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(sum(losses.values()), [out["pred_logits"], out["pred_masks"]])  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (1, 9)])
def test_empty_and_crowded_images_give_finite_losses_and_class_gradients(counts: tuple[int, int]) -> None:
    out = outputs()
    losses = criterion()(out, targets(*counts))
    assert all(loss.isfinite() for loss in losses.values())
    class_gradient, mask_gradient = gradients(losses, out)
    assert class_gradient.abs().sum() > 0
    assert class_gradient.isfinite().all()
    assert mask_gradient.isfinite().all()
    assert (mask_gradient.abs().sum() > 0) == (sum(counts) > 0)


def test_a_target_without_query_costs_nothing() -> None:
    out = outputs(batch=1, aux=0)
    (wanted,) = targets(2)
    loss = criterion(importance_sample_ratio=0.0, num_points=2000)
    masks = [out["pred_masks"][:, 3:4].transpose(0, 1)]
    with_both = loss.mask_losses(masks, assigned([[3]], targets=[[0]]), [wanted])
    torch.manual_seed(1)
    only_first = Target(labels=wanted["labels"][:1], masks=wanted["masks"][:1])
    alone = loss.mask_losses(masks, assigned([[3]]), [only_first])
    torch.testing.assert_close(2 * with_both["loss_mask"], alone["loss_mask"], rtol=0.1, atol=0)
    classes = loss.classification_losses(out["pred_logits"].unsqueeze(0), assigned([[3]], targets=[[0]]), [wanted])
    torch.testing.assert_close(
        classes,
        loss.classification_losses(out["pred_logits"].unsqueeze(0), assigned([[3]]), [only_first]),
    )


def test_losses_are_float32_under_autocast() -> None:
    out = outputs(aux=0)
    torch.manual_seed(1)
    exact = criterion()(out, targets(2, 3))
    half = {
        "pred_logits": out["pred_logits"].bfloat16(),
        "pred_masks": out["pred_masks"].bfloat16(),
        "aux_outputs": [],
    }
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion()(half, targets(2, 3))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(losses["loss_ce"], exact["loss_ce"], rtol=0.05, atol=0)


def test_impossible_sampling_settings_are_named() -> None:
    with pytest.raises(ValueError, match="OVERSAMPLE_RATIO must be at least 1"):
        criterion(oversample_ratio=0.5)


MANY_INSTANCES = """
import resource, sys, torch
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.matcher import HungarianMatcher, Target

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

matcher = HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=5, num_points=1024)
loss = SetCriterion(num_classes=4, matcher=matcher, class_weight=2, mask_weight=5, dice_weight=5,
    no_object_weight=0.1, num_points=1024, oversample_ratio=3, importance_sample_ratio=0.75)
masks = PackedMasks(torch.full((125, 512, 512), 0b1010101, dtype=torch.uint8))
target = Target(labels=torch.zeros(1000, dtype=torch.int64), masks=masks)
predictions = [{"pred_logits": torch.randn(1, 50, 5, requires_grad=True),
    "pred_masks": torch.randn(1, 50, 64, 64, requires_grad=True)} for _ in range(3)]
before = peak()
losses = loss({**predictions[0], "aux_outputs": predictions[1:]}, [target])
sum(losses.values()).backward()
print(peak() - before)
"""


def test_a_thousand_instances_need_little_memory() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MANY_INSTANCES], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 200, "MiB; as float masks they would be 1000 MiB, as bool 250"
