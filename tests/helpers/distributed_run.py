"""Script that torchrun starts: trains a small Mask2Former with its criterion; arguments: output folder, parts.

The points of the losses are the same for all pairs: then the mean over processes and parts of what each makes of its
images is what one process makes of all, however many masks each has.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.structures import BitMasks, Instances
from mask2former.engine.launch import launch
from mask2former.engine.trainer import Trainer
from tests.helpers.models import small_cfg

IMAGES, SIZE = 4, 64


def _points(*shape: int, device: torch.device) -> Tensor:
    """In place of `random_points`: the same, evenly spread, for each entry before the last dimension."""
    numbers = torch.arange(2 * shape[-1], device=device).double() * 0.6180339887 % 1
    return (2 * numbers - 1).float().view(-1, 2).expand(*shape, 2).contiguous()


def _image(index: int) -> dict[str, Any]:
    """An image with 0, 1, 2 or 3 masks."""
    generator = torch.Generator().manual_seed(index)
    count = index % IMAGES
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for number in range(count):
        masks[number, 12 * number : 12 * number + 20, 8 * index % 32 :] = True
    instances = Instances((SIZE, SIZE), gt_classes=torch.arange(count), gt_masks=BitMasks(masks))
    image = torch.randint(0, 255, (3, SIZE, SIZE), generator=generator)
    return {"image": image, "instances": instances, "height": SIZE, "width": SIZE}


class RealTrainer(Trainer):
    """Its result depends on the global batch alone."""

    check_setup = staticmethod(lambda cfg: None)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> Iterator[list[dict[str, Any]]]:
        while True:
            yield [_image(index) for index in range(comm.get_rank(), IMAGES, comm.get_world_size())]


@contextmanager
def fixed_points() -> Iterator[None]:
    """Let losses and matching costs look at the same points always."""
    modeling = "mask2former.modeling"
    with (
        mock.patch(f"{modeling}.points.random_points", _points),
        mock.patch(f"{modeling}.matcher.random_points", _points),
    ):
        yield


def main(output_dir: str, parts: int = 1, is_divided: bool = False) -> None:
    """Train for three iterations and save `model_final.pth`."""
    cfg = small_cfg(
        MODEL__RESNETS__NORM="FrozenBN",
        MODEL__FSDP=is_divided,
        MODEL__MASK_FORMER__WEIGHT_OF_EACH_CLASS=[1.0, 3.0, 0.5, 2.0, 1.0],
        SOLVER__ACCUMULATION_STEPS=parts,
        SOLVER__OPTIMIZER="SGD",
        SOLVER__BASE_LR=0.001,
        SOLVER__MAX_ITER=3,
        SOLVER__IMS_PER_BATCH=IMAGES,
        SOLVER__WARMUP_ITERS=0,
        DATASETS__TEST=(),
        DATASETS__TRAIN=(),
        SEED=3,
        OUTPUT_DIR=output_dir,
    )
    with fixed_points():
        trainer = RealTrainer(cfg)
        trainer.train()
    Path(output_dir, f"rank{comm.get_rank()}of{comm.get_world_size()}").touch()


if __name__ == "__main__":
    launch(main, 1, args=(sys.argv[1], *map(int, sys.argv[2:])))
