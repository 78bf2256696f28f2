"""A resumed run, and what it takes over from the run that it continues: settings, and what hooks remember."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mask2former.checkpoint import CheckpointError
from mask2former.checkpoint.description import describe
from mask2former.config import get_cfg
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import flat_settings
from mask2former.data.plain import to_plain
from mask2former.files import replacing

logger = logging.getLogger(__name__)

UNTOLD = ("OUTPUT_DIR", "MODEL.CATEGORIES")
"""What may differ without a word: the place, and what follows from the data sets."""


def cfg_of(settings: Mapping[str, Any]) -> CfgNode:
    """The config of `flat_settings`; keys that there are no more are left out."""
    cfg = get_cfg()
    for path, value in settings.items():
        *parents, key = path.split(".")
        node: Any = cfg
        for parent in parents:
            node = node.get(parent, {})
        if key in node:
            node[key] = value
    return cfg


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


def run_state(cfg: CfgNode, hooks: Iterable[Any]) -> dict[str, Any]:
    """What a checkpoint holds of a run beside weights and their optimiser."""
    return {
        "seed": cfg.SEED,
        "settings": flat_settings(cfg),
        **describe(cfg),
        "hooks": hook_states(hooks),
    }


def hook_states(hooks: Iterable[Any]) -> dict[str, Any]:
    """What hooks remember, by name, as data that files can hold; hooks that have nothing to remember are left out."""
    states = {name: hook.state_dict() for name, hook in _named(hooks) if hasattr(hook, "state_dict")}
    return {name: to_plain(state) for name, state in states.items() if state}


def load_hook_states(hooks: Iterable[Any], states: Mapping[str, Any]) -> None:
    """Give hooks what `hook_states` returned; names that are unknown on either side are passed over."""
    for name, hook in _named(hooks):
        if name in states:
            hook.load_state_dict(states[name])


def _named(hooks: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Hooks with the names of their classes, numbered from the second of a class on."""
    seen: dict[str, int] = {}
    for hook in hooks:
        name = type(hook).__qualname__
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} {seen[name]}", hook


class EvaluationRecord:
    """The file that tells which evaluation was the last, and what hooks remembered after it.

    It follows the checkpoint of the same iteration, which cannot know what comes of the evaluation.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder, "last_evaluation.state")

    def write(self, iteration: int, hooks: Iterable[Any]) -> None:
        """Replace the record. Without it, for want of room, a run that resumes makes the evaluation again."""
        try:
            with replacing(self._path) as temporary:
                torch.save({"iteration": iteration, "hooks": hook_states(hooks)}, temporary)
        except (OSError, RuntimeError) as error:  # the latter is how PyTorch reports a full disk
            logger.error("%s cannot be written: %s", self._path, error)

    def read(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The newest states of hooks for a run that goes on with the `state` of a checkpoint."""
        content = torch.load(self._path, weights_only=True) if self._path.is_file() else {}
        newest = content if content.get("iteration") == state["iteration"] else state
        return newest.get("hooks", {})

    def remove(self) -> None:
        """Forget an earlier run."""
        self._path.unlink(missing_ok=True)
