"""A resumed run and the settings of the run that it continues."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mask2former.checkpoint import CheckpointError
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode

UNTOLD = ("OUTPUT_DIR", "MODEL.CATEGORIES")
"""What may differ without a word: the place, and what follows from the data sets."""


def flat_settings(cfg: CfgNode) -> dict[str, Any]:
    """All settings as `{"SOLVER.BASE_LR": 0.0001, ...}`, plain data that a checkpoint can hold."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            flat |= {f"{key}.{inner}": setting for inner, setting in flat_settings(value).items()}
        else:
            flat[key] = value
    return flat


def changed_settings(before: Mapping[str, Any], cfg: CfgNode) -> list[str]:
    """What differs from the settings of a checkpoint, as `SOLVER.BASE_LR: 0.1 -> 0.01`, but for `UNTOLD`.

    Raises:
        CheckpointError: SOLVER.OPTIMIZER differs; another optimiser cannot go on with the state of the first.
    """
    now = flat_settings(cfg)
    different = [key for key in now if key in before and before[key] != now[key] and key not in UNTOLD]
    if "SOLVER.OPTIMIZER" in different:
        raise CheckpointError(
            f"SOLVER.OPTIMIZER was {before['SOLVER.OPTIMIZER']} and is {now['SOLVER.OPTIMIZER']}, which cannot resume; "
            "start a new run from the weights: set MODEL.WEIGHTS and a new OUTPUT_DIR, and leave --resume out"
        )
    return [f"{key}: {before[key]} -> {now[key]}" for key in different]


def optimizer_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Learning rates, weight decay and so on, by parameter group."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def apply_settings(settings: list[dict[str, Any]], optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Let an optimiser whose state was restored go on with `settings` instead of those in its state.

    Of schedules that are functions of the iteration, as ours, the one of this run counts from now on.
    """
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        group.update(wanted, lr=group["lr"])
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if isinstance(scheduler, LambdaLR):
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)


def check_same_start(iteration: int, folder: str) -> None:
    """Check that all processes start at the same iteration; every process must call it.

    Raises:
        CheckpointError: they do not, because they see different folders.
    """
    found = comm.all_gather(iteration)
    if len(set(found)) > 1:
        raise CheckpointError(
            f"the processes would start at iterations {found}: OUTPUT_DIR {folder!r} must be one folder that all "
            "machines share"
        )
