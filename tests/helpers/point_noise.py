"""What it costs, in noise and time, to let the predictions of an instance share their random points.

    python tests/helpers/point_noise.py

A half-trained model is imitated: four discs in an image of 512 x 512 pixels, mask logits that are right up to a smooth
error, and ten predictions that differ by as much as the first column says. Noise is the standard deviation of the
gradient over draws of points, relative to the gradient's norm. It prints the table of docs/performance.md.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mask2former.modeling import criterion as criterion_module
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import Assignment, Target
from mask2former.modeling.points import random_points, sample_shared_points, smallest, uncertain_points

NUM_PREDICTIONS, SIZE, DRAWS = 10, 128, 12
DISCS = ((0.3, 0.3, 0.2), (0.7, 0.3, 0.15), (0.5, 0.7, 0.25), (0.2, 0.8, 0.1))


def shared_points(
    logits: Tensor, *, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """As `uncertain_points`, but maps of the same instance, ten neighbours, choose from the same candidates."""
    count, chosen = int(importance_sample_ratio * num_points), []
    for maps in logits.split(NUM_PREDICTIONS):
        candidates = random_points(int(oversample_ratio * num_points), device=logits.device)
        nearest = smallest(sample_shared_points(maps, candidates).abs_(), count)
        uniform = random_points(1, num_points - count, device=logits.device).expand(len(maps), -1, -1)
        chosen.append(torch.cat([candidates[nearest], uniform], dim=1))
    return torch.cat(chosen)


def scene() -> tuple[Target, Tensor]:
    """Targets, and mask logits (4, 128, 128) that are nearly right."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 512), torch.linspace(0, 1, 512), indexing="ij")
    masks = torch.stack([(x - cx) ** 2 + (y - cy) ** 2 < radius**2 for cx, cy, radius in DISCS])
    right = F.interpolate(masks[None].float(), size=(SIZE, SIZE), mode="area")[0] * 8 - 4
    error = F.interpolate(2 * torch.randn(1, len(DISCS), 12, 12), size=(SIZE, SIZE), mode="bicubic")[0]
    return Target(labels=torch.zeros(len(DISCS), dtype=torch.int64), masks=masks), right + error


def gradient(loss: SetCriterion, target: Target, base: Tensor, differences: Tensor) -> Tensor:
    """The gradient by what all predictions have in common, at an eighth of the resolution."""
    leaf = base.clone().requires_grad_()
    predictions = [{"pred_logits": torch.zeros(1, len(DISCS), 2), "pred_masks": (leaf + d)[None]} for d in differences]
    pairs = Assignment(torch.arange(len(DISCS)), torch.arange(len(DISCS)))
    losses = loss.mask_losses(predictions, [[pairs]] * len(predictions), [target])
    return F.avg_pool2d(torch.autograd.grad(sum(x.sum() for x in losses.values()), leaf)[0][None], 8).flatten()


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    weights = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1}
    loss = SetCriterion(num_classes=1, matcher=torch.nn.Identity(), **weights, **settings)
    target, base = scene()
    noise = F.interpolate(torch.randn(NUM_PREDICTIONS, len(DISCS), 16, 16), size=(SIZE, SIZE), mode="bilinear")
    ways = {"own (here and published)": uncertain_points, "shared by predictions": shared_points}
    sys.stdout.write("| predictions differ by | points | noise / gradient | time of mask losses |\n|---|---|---|---|\n")
    for spread in (0.1, 1.0):
        found: dict[str, list[Tensor]] = {name: [] for name in ways}
        seconds = dict.fromkeys(ways, float("inf"))
        for _ in range(DRAWS):
            for name, way in ways.items():
                with patch.object(criterion_module, "uncertain_points", way):
                    start = time.process_time()
                    found[name].append(gradient(loss, target, base, spread * noise))
                    seconds[name] = min(seconds[name], time.process_time() - start)
        for name, draws in found.items():
            values = torch.stack(draws)
            relative = values.var(dim=0).sum().sqrt() / values.mean(dim=0).norm()
            sys.stdout.write(f"| {spread} | {name} | {relative:.3f} | {1000 * seconds[name]:.0f} ms |\n")


if __name__ == "__main__":
    main()
