"""Matching and losses of all predictions at once, against a loop over predictions and images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mask2former.benchmarks.models import model_cfg, our_model
from mask2former.benchmarks.results import Row
from mask2former.benchmarks.scenes import dense_targets, size_name
from mask2former.benchmarks.timing import in_turn, ratios

NAME = "criterion"
MASK_STRIDE = 4  # of predicted masks
LOOP = "loop"


def run(args: argparse.Namespace) -> list[Row]:
    """Measure forward, and forward and backward."""
    from mask2former.benchmarks.per_layer_criterion import PerLayerCriterion

    cfg = model_cfg("R50", args.device, quick=args.quick, opts=args.opts)
    model: Any = our_model(cfg, args.seed)
    num_classes, node = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.MASK_FORMER
    loop = PerLayerCriterion(num_classes=num_classes, num_points=node.TRAIN_NUM_POINTS)
    rows: list[Row] = []
    for size in args.size:
        outputs, targets = _example(args, size, node.NUM_OBJECT_QUERIES, num_classes)
        for backward in (False, True):
            functions: dict[str, Callable[[], object]] = {
                "ours": partial(_losses, model.criterion, outputs, targets, backward),
                LOOP: partial(_losses, loop, outputs, targets, backward),
            }
            samples = in_turn(
                functions,
                rounds=args.rounds,
                warmup=args.warmup,
                device=torch.device(args.device),
                title=f"criterion {size_name(size)}",
            )
            images = f"{args.batch} x {size_name(size)}, {args.instances} instances each"
            case = {
                "images": images,
                "predictions": str(args.predictions),
                "pass": "forward and backward" if backward else "forward",
            }
            rows.append(
                Row(
                    suite=NAME,
                    case={**case, "of": "ours"},
                    seconds=samples["ours"],
                    versus=LOOP,
                    ratios=ratios(samples[LOOP], samples["ours"]),
                )
            )
            rows.append(Row(suite=NAME, case={**case, "of": LOOP}, seconds=samples[LOOP]))
    return rows


def _example(
    args: argparse.Namespace, size: tuple[int, int], num_queries: int, num_classes: int
) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Random predictions, and the targets of a grid of rectangles."""
    torch.manual_seed(args.seed)
    height, width = size[0] // MASK_STRIDE, size[1] // MASK_STRIDE
    predictions = [
        {
            "pred_logits": torch.randn(args.batch, num_queries, num_classes + 1, device=args.device).requires_grad_(),
            "pred_masks": torch.randn(args.batch, num_queries, height, width, device=args.device).requires_grad_(),
        }
        for _ in range(args.predictions)
    ]
    classes, masks = dense_targets(args.instances, size)
    targets = [{"labels": classes.to(args.device), "masks": masks.to(args.device)} for _ in range(args.batch)]
    return {**predictions[0], "aux_outputs": predictions[1:]}, targets


def _losses(criterion: Callable[..., dict[str, Tensor]], outputs: Any, targets: Any, backward: bool) -> Tensor:
    with torch.set_grad_enabled(backward):
        loss = torch.stack(list(criterion(outputs, targets).values())).sum()
    if backward:
        inputs = [value for p in (outputs, *outputs["aux_outputs"]) for key, value in p.items() if key != "aux_outputs"]
        torch.autograd.grad(loss, inputs)
    return loss.detach()
