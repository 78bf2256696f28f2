from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.benchmarks.per_layer_criterion import PerLayerCriterion
from mask2former.d2 import comm
from mask2former.modeling import masks as masks_module
from mask2former.modeling import matcher as matcher_module
from mask2former.modeling import points as points_module
from mask2former.modeling.criterion import (
    SetCriterion,
    average_number_of_masks,
    dice,
    sigmoid_cross_entropy,
    weighted_losses,
)
from mask2former.modeling.masks import PackedMasks
from mask2former.modeling.matcher import Assignment, HungarianMatcher, Target, assign
from mask2former.modeling.points import values_at_once
from tests.helpers import golden
from tests.helpers.points import same_points
from tests.helpers.processes import run_processes

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


def assigned(*queries: list[int], targets: list[list[int]] | None = None) -> list[Assignment]:
    """Return the pairs of one prediction from the queries of each image, by default with all targets in order."""
    return [
        Assignment(torch.tensor(q), torch.arange(len(q)) if targets is None else torch.tensor(targets[b]))
        for b, q in enumerate(queries)
    ]


def test_classification_is_a_weighted_mean_over_matched_and_empty_queries() -> None:
    out = outputs(aux=0)
    loss = criterion(class_weight=1.0)
    wanted = targets(2, 1)
    ours = loss.classification_losses([out], [assigned([4, 0], [3])], wanted)
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
    predictions = [out, *out["aux_outputs"]]
    assignments = [assigned([4, 0], [3, 1, 2]), assigned([1, 2], [0, 1, 2]), assigned([0, 5], [5, 4, 3])]
    torch.manual_seed(0)
    ours = loss.mask_losses(predictions, assignments, wanted)
    for p in range(3):
        expected = torch.zeros(2)
        for b in range(2):
            for t, query in enumerate(assignments[p][b].queries.tolist()):
                large = F.interpolate(
                    predictions[p]["pred_masks"][b, query][None, None], size=(256, 256), mode="bilinear"
                )[0, 0]
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


@pytest.mark.parametrize("device_limits", ["cpu", "cuda"])
@pytest.mark.parametrize("counts", [(2, 3), (0, 4), (9, 1)])
def test_losses_and_gradients_equal_those_of_a_loop_over_predictions_and_images(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int], device_limits: str
) -> None:
    out, wanted = outputs(), targets(*counts)
    same_points(monkeypatch)
    work_as_on(device_limits, monkeypatch)
    ours = criterion()(out, wanted)
    theirs = PerLayerCriterion(num_classes=4, num_points=64)(out, wanted)
    assert ours.keys() == theirs.keys()
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=1e-5, atol=1e-6)
    for mine, other in zip(gradients(ours, out), gradients(theirs, out), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def work_as_on(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU work in parts as large as on `device`."""
    limit = values_at_once(torch.device(device))
    for module in (matcher_module, points_module, masks_module):
        monkeypatch.setattr(module, "values_at_once", lambda _: limit)


class Operations(TorchDispatchMode):
    """Counts operations that start a kernel on a GPU: those that only look at a tensor in another way do not."""

    VIEWS = (
        *("view", "_unsafe_view", "_reshape_alias", "view_as_complex", "view_as_real", "as_strided", "alias", "detach"),
        *("slice", "select", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "unbind", "split"),
        *("split_with_sizes", "lift_fresh"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen[name] += name not in self.VIEWS
        return func(*args, **(kwargs or {}))


def operations(num_targets: int) -> Counter[str]:
    """Count those of a step forward at the usual sizes, but for the number of points."""
    torch.manual_seed(0)
    predictions = [
        {"pred_logits": torch.randn(2, 100, 5), "pred_masks": torch.randn(2, 100, 64, 64)} for _ in range(10)
    ]
    planes = torch.randint(0, 256, (3, 1024, 1024), dtype=torch.uint8)
    masks = PackedMasks(planes, torch.arange(num_targets))
    wanted = [Target(labels=torch.zeros(num_targets, dtype=torch.int64), masks=masks) for _ in range(2)]
    with Operations() as counted:
        criterion(num_points=1256)({**predictions[0], "aux_outputs": predictions[1:]}, wanted)
    return counted.seen


def test_a_gpu_gets_few_and_large_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    work_as_on("cuda", monkeypatch)
    few, many = operations(3), operations(20)
    assert many == few, "the number of targets does not matter"
    # Matching: masks and targets of two images; losses: candidates, points, and targets of two images.
    assert many["grid_sampler_2d"] == 8
    assert many.total() < 220
    work_as_on("cpu", monkeypatch)
    assert operations(20).total() > 500, "the test can fail"


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


def gradients(losses: dict[str, Tensor], out: dict, **options: bool) -> tuple[Tensor, ...]:
    leaves = [out["pred_logits"], out["pred_masks"]]
    return torch.autograd.grad(torch.stack([*losses.values()]).sum(), leaves, **options)


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
    with_both = loss.mask_losses([out], [assigned([3], targets=[[0]])], [wanted])
    torch.manual_seed(1)
    only_first = Target(labels=wanted["labels"][:1], masks=wanted["masks"][:1])
    alone = loss.mask_losses([out], [assigned([3])], [only_first])
    torch.testing.assert_close(2 * with_both["loss_mask"], alone["loss_mask"], rtol=0.1, atol=0)
    torch.testing.assert_close(
        loss.classification_losses([out], [assigned([3], targets=[[0]])], [wanted]),
        loss.classification_losses([out], [assigned([3])], [only_first]),
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", ["mask_features", "mask_embeddings"])
def test_features_and_embeddings_of_different_precision_are_multiplied(dtype: torch.dtype, wide: str) -> None:
    torch.manual_seed(0)
    features, embedding = torch.randn(2, 5, 8, 8, requires_grad=True), torch.randn(2, 6, 5, requires_grad=True)
    narrow = {"mask_features": features.to(dtype), "mask_embeddings": embedding.to(dtype)}
    masks = torch.einsum("bqe,behw->bqhw", narrow["mask_embeddings"].float(), narrow["mask_features"].float())
    out = {"pred_logits": torch.randn(2, 6, 5), "pred_masks": masks.detach().to(dtype)}
    found = []
    for given in (narrow, {**narrow, wide: {"mask_features": features, "mask_embeddings": embedding}[wide]}):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = criterion()({**out, **given}, targets(2, 3))
        found.append([*losses.values(), *torch.autograd.grad(sum(losses.values()), [features, embedding])])
    for same, mixed in zip(*found, strict=True):
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, same)


def test_no_prediction_is_copied_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prediction of one image at a time may be; those of matched queries are."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                largest = max(largest, result.numel())
            return result

    monkeypatch.setattr(matcher_module, "values_at_once", lambda device: 1)
    predictions = [
        {"pred_logits": torch.randn(2, 50, 5), "pred_masks": torch.randn(2, 50, 64, 64).bfloat16()} for _ in range(4)
    ]
    with Sizes():
        criterion()({**predictions[0], "aux_outputs": predictions[1:]}, targets(2, 3))
    assert largest == 50 * 64 * 64


def test_impossible_sampling_settings_are_named() -> None:
    with pytest.raises(ValueError, match="OVERSAMPLE_RATIO must be at least 1"):
        criterion(oversample_ratio=0.5)


def test_each_class_has_its_weight() -> None:
    out, wanted = outputs(aux=0), targets(2, 1)
    loss = criterion(weight_of_each_class=[3, 1, 0.5, 2], no_object_weight=0.2)
    ours = loss.classification_losses([out], [assigned([4, 0], [3])], wanted)
    classes = torch.full((2, 6), 4)
    classes[0, 4], classes[0, 0] = wanted[0]["labels"]
    classes[1, 3] = wanted[1]["labels"][0]
    expected = F.cross_entropy(out["pred_logits"].transpose(1, 2), classes, torch.tensor([3, 1, 0.5, 2, 0.2]))
    torch.testing.assert_close(ours, expected.unsqueeze(0))
    with pytest.raises(ValueError, match="WEIGHT_OF_EACH_CLASS has 3 weights for 4 classes"):
        criterion(weight_of_each_class=[1, 2, 3])


class Fixed(torch.nn.Module):
    """A matcher that says what it is told to."""

    def __init__(self, assignments: list[list[Assignment]]) -> None:
        super().__init__()
        self.assignments = assignments

    def forward(self, predictions: Any, targets: Any) -> list[list[Assignment]]:
        return self.assignments


def test_a_target_may_have_several_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    out, wanted, loss = outputs(batch=1, aux=0), targets(3), criterion(class_weight=1, mask_weight=1, dice_weight=1)
    same_points(monkeypatch)
    pairs = [(0, 2), (1, 1), (2, 2), (4, 2)]  # queries and targets; target 0 has none

    def with_pairs(*chosen: tuple[int, int]) -> dict[str, Tensor]:
        queries, ids = (torch.tensor(one) for one in zip(*chosen, strict=True))
        loss.matcher = Fixed([[Assignment(queries, ids)]])
        return loss(out, wanted)

    losses, alone = with_pairs(*pairs), [with_pairs(pair) for pair in pairs]
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(losses[name], torch.stack([one[name] for one in alone]).sum())
    classes = torch.tensor([[2, 1, 2, -1, 2, -1]])
    labels = torch.where(classes < 0, 4, wanted[0]["labels"][classes.clamp(min=0)])
    weight = torch.tensor([1, 1, 1, 1, 0.1])
    torch.testing.assert_close(losses["loss_ce"], F.cross_entropy(out["pred_logits"].transpose(1, 2), labels, weight))


def test_a_prediction_that_is_not_finite_spoils_its_own_losses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    out, wanted, loss = outputs(), targets(2, 3), criterion()
    loss.matcher = Fixed([assigned([4, 0], [3, 1, 2])] * 3)
    same_points(monkeypatch)
    fine = loss(out, wanted)
    out["aux_outputs"][0] = {name: torch.full_like(value, torch.nan) for name, value in out["aux_outputs"][0].items()}
    spoilt = loss(out, wanted)
    assert [name for name, value in spoilt.items() if value.isnan()] == [name + "_0" for name in NAMES]
    for suffix in ("", "_1"):
        for name in NAMES:
            torch.testing.assert_close(spoilt[name + suffix], fine[name + suffix])


class Denoising(HungarianMatcher):
    """Queries that a decoder made from targets, the last ones, predict these; the rest is matched as usual."""

    def forward(self, predictions: Any, wanted: Any) -> list[list[Assignment]]:
        made_from = [list(p["made_from"]) for p in predictions]
        usual = [
            {name: p[name][:, : -len(ids[0])] for name in ("pred_logits", "pred_masks")}
            for p, ids in zip(predictions, made_from, strict=True)
        ]
        return [
            [
                Assignment(
                    torch.cat([one.queries, p["pred_logits"].shape[1] - len(its) + torch.arange(len(its))]),
                    torch.cat([one.targets, its]),
                )
                for one, its in zip(images, ids, strict=True)
            ]
            for p, images, ids in zip(predictions, super().forward(usual, wanted), made_from, strict=True)
        ]


def test_denoising_queries_are_matched_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    out, wanted = outputs(queries=10), targets(2, 3)
    same_points(monkeypatch)
    predictions = [out, *out["aux_outputs"]]
    made_from = torch.tensor([[1, 0, 1, 0], [2, 0, 1, 2]])
    usual = [{name: p[name][:, :6] for name in ("pred_logits", "pred_masks")} for p in predictions]
    expected = criterion()({**usual[0], "aux_outputs": usual[1:]}, wanted)
    for p in predictions:
        p["made_from"] = made_from
    loss = criterion()
    loss.matcher = Denoising(cost_class=2, cost_mask=5, cost_dice=5, num_points=64)
    losses = loss(out, wanted)

    pairs = loss.matcher(predictions, wanted)
    assert [one.queries[-4:].tolist() for images in pairs for one in images] == [[6, 7, 8, 9]] * 6
    made = [assigned([6, 7, 8, 9], [6, 7, 8, 9], targets=made_from.tolist())] * 3
    for name, values in loss.mask_losses(predictions, made, wanted).items():
        for suffix, value in zip(("", "_0", "_1"), 5 * values, strict=True):
            torch.testing.assert_close(losses[name + suffix], expected[name + suffix] + value)
    weight = torch.tensor([1, 1, 1, 1, 0.1])
    for p, images, suffix in zip(predictions, pairs, ("", "_0", "_1"), strict=True):
        classes = torch.full((2, 10), 4)
        for b, (queries, ids) in enumerate(images):
            classes[b, queries] = wanted[b]["labels"][ids]
        cross_entropy = F.cross_entropy(p["pred_logits"].transpose(1, 2), classes, weight)
        torch.testing.assert_close(losses["loss_ce" + suffix], 2 * cross_entropy)


@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (9, 4)])
def test_predictions_may_differ_in_queries_and_size(monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    wanted = targets(*counts)
    predictions = [
        {
            "pred_logits": torch.randn(2, queries, 5, requires_grad=True),
            "pred_masks": torch.randn(2, queries, size, size, requires_grad=True),
        }
        for queries, size in ((6, 8), (4, 8), (5, 16), (7, 8))
    ]
    same_points(monkeypatch)
    losses = criterion()({**predictions[0], "aux_outputs": predictions[1:]}, wanted)
    for prediction, suffix in zip(predictions, ("", "_0", "_1", "_2"), strict=True):
        alone = criterion()(prediction, wanted)
        for name in NAMES:
            torch.testing.assert_close(losses[name + suffix], alone[name])
        together = {name: losses[name + suffix] for name in NAMES}
        for one, other in zip(
            gradients(together, prediction, retain_graph=True), gradients(alone, prediction), strict=True
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("queries", "wanted", "message"),
    [([5, 6], [0, 1], "query 6 of 6, in prediction 0 of image 1"), ([5, 0], [0, -1], "target -1 of 2")],
)
def test_impossible_pairs_are_named(queries: list[int], wanted: list[int], message: str) -> None:
    loss = criterion()
    fine = Assignment(torch.tensor([0]), torch.tensor([1]))
    loss.matcher = Fixed([[fine, Assignment(torch.tensor(queries), torch.tensor(wanted))]])
    with pytest.raises(ValueError, match=message):
        loss(outputs(aux=0), targets(2, 2))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_are_any_integers_one_for_each_mask(dtype: torch.dtype) -> None:
    found = []
    for kind in (torch.int64, dtype):
        wanted = [Target(labels=t["labels"].to(kind), masks=t["masks"]) for t in targets(2, 3)]
        torch.manual_seed(0)
        found.append(torch.stack(list(criterion()(outputs(), wanted).values())))
    assert torch.equal(*found)
    for labels in (torch.tensor([0.0, 1.0]), torch.tensor([1])):
        with pytest.raises(ValueError, match="for 2 masks: give an integer for each"):
            criterion()(outputs(batch=1), [Target(labels=labels, masks=targets(2)[0]["masks"])])


class Published(torch.nn.Module):
    """As the published code: plain losses, weights for some of them, masks as tensors."""

    weight_dict: ClassVar = {"loss_ce": 2.0, "loss_mask": 0.0}

    def forward(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        areas = torch.cat([target["masks"].flatten(1).sum(dim=1) for target in targets])
        assert all(target["masks"].dtype == torch.bool for target in targets)
        return {"loss_ce": areas.sum(), "loss_mask": areas.max(), "cardinality_error": areas.min()}


def test_criteria_with_a_weight_dict_are_weighted() -> None:
    wanted = targets(2, 3)
    packed = [Target(labels=t["labels"], masks=PackedMasks.pack(t["masks"])) for t in wanted]
    losses = weighted_losses(Published(), outputs(), packed)
    assert losses == {"loss_ce": 2 * sum(t["masks"].sum() for t in wanted), "loss_mask": 0}
    torch.manual_seed(0)
    ours = weighted_losses(criterion(), outputs(), packed)
    torch.manual_seed(0)
    assert ours == criterion()(outputs(), packed)


def losses_of_one_process(folder: Path) -> None:
    """Both processes have other numbers of targets."""
    counts = [(1, 0), (4, 2)][comm.get_rank()]
    torch.manual_seed(0)
    losses = criterion()(outputs(), targets(*counts))
    torch.save({name: loss.item() for name, loss in losses.items()}, folder / f"{comm.get_rank()}.pth")
    assert average_number_of_masks(0, torch.device("cpu")) == 0.5


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_counts_are_averaged_over_processes(tmp_path: Path) -> None:
    ended = run_processes(losses_of_one_process, tmp_path, folder=tmp_path)
    assert [process.code for process in ended] == [0, 0], ended
    for rank, counts in enumerate([(1, 0), (4, 2)]):
        torch.manual_seed(0)
        alone = criterion()(outputs(), targets(*counts))
        together = torch.load(tmp_path / f"{rank}.pth")
        queries = 2 * outputs()["pred_logits"].shape[1]
        own, other = (n + criterion().empty_weight[-1].item() * (queries - n) for n in (sum(counts), 7 - sum(counts)))
        for name, loss in alone.items():
            of_classes = name.startswith("loss_ce")
            factor = own / ((own + other) / 2) if of_classes else sum(counts) / 3.5  # of a process, on average
            assert together[name] == pytest.approx(factor * loss.item(), rel=1e-4), (rank, name)


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
