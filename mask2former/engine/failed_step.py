"""The step in which something was not finite: in a file, and run again."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import flat_settings
from mask2former.d2.events import EventStorage
from mask2former.data.plain import from_plain
from mask2former.engine.accumulation import losses_and_gradients
from mask2former.engine.finite import NonFiniteError, nonfinite_gradients
from mask2former.engine.freeze import freeze
from mask2former.engine.precision import Precision
from mask2former.engine.resume import cfg_of
from mask2former.engine.seed import seed_everything
from mask2former.engine.setup import use_available_device
from mask2former.files import replacing

if TYPE_CHECKING:
    from mask2former.engine.trainer import Trainer

logger = logging.getLogger(__name__)


def write_failed_step(cfg: CfgNode, model: nn.Module, scaler: GradScaler, error: NonFiniteError) -> None:
    """Write weights and inputs of the step that `error` tells of to OUTPUT_DIR/failed_step_<iteration>.pth.

    The process that has the inputs does, the main one. A failure is logged, for there is an error already.
    """
    weights = model.state_dict()  # all processes: they may have to gather it
    if not error.batches:
        return
    path = Path(cfg.OUTPUT_DIR, f"failed_step_{error.iteration:07d}.pth")
    content = {
        "model": weights,
        "settings": flat_settings(cfg),
        "iteration": error.iteration,
        "scale": scaler.get_scale(),
        "message": str(error),
        "batches": error.batches,
    }
    try:
        with replacing(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as failure:
        logger.error("The step cannot be written to %s: %s", path, failure)
    else:
        logger.error("To run the step again: mask2former replay %s", path)


@dataclass(frozen=True)
class ReplayedStep:
    """What came of a step on the inputs of one process.

    Attributes:
        losses: by name, as weighted by the model, and their sum as `total_loss`.
        module: the first module with an output that is not finite, if any.
        gradients: the first parameters whose gradient is not finite.
    """

    rank: int
    losses: dict[str, float]
    module: str | None
    gradients: list[str]

    @property
    def is_finite(self) -> bool:
        return self.module is None and not self.gradients and all(map(math.isfinite, self.losses.values()))

    def __str__(self) -> str:
        losses = ", ".join(f"{name} {value:.6g}" for name, value in self.losses.items())
        module = f"\n  first output that is not finite: {self.module}" if self.module else ""
        gradients = f"\n  gradients that are not finite: {', '.join(self.gradients)}" if self.gradients else ""
        return f"process {self.rank}: {losses}{module}{gradients}{'  all finite' if self.is_finite else ''}"


def replay_failed_step(path: str | os.PathLike[str], trainer: "type[Trainer]") -> list[ReplayedStep]:
    """Run the step in a file of `write_failed_step` again, process by process, forward and backward.

    On a CPU the numbers are those of the run. Gradients are those of each process alone.

    Args:
        trainer: builds the model.
    """
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    cfg = use_available_device(cfg_of(content["settings"]))
    model = trainer.build_model(cfg)
    model.load_state_dict(content["model"])
    model.train()
    for module in freeze(model, cfg.MODEL.FREEZE):
        module.eval()
    precision = Precision.from_config(cfg, torch.device(cfg.MODEL.DEVICE))
    steps = []
    for rank, batch in content["batches"].items():
        model.zero_grad()
        seed_everything(cfg.SEED, content["iteration"], rank)
        with EventStorage(content["iteration"]), _watched(model) as broken:
            losses = losses_and_gradients(
                model,
                from_plain(batch),
                parts=cfg.SOLVER.ACCUMULATION_STEPS,
                precision=precision,
                scale=partial(torch.mul, other=content["scale"]),
            )
        numbers = {name: float(loss) for name, loss in losses.items()}
        steps.append(ReplayedStep(rank, numbers, next(iter(broken), None), nonfinite_gradients(model)))
        model.load_state_dict(content["model"])  # running statistics
    return steps


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collects the names of modules with outputs that are not finite, in the order of execution."""
    broken: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not _is_finite(output):
                broken.append(f"{name or 'the model'} ({type(module).__name__})")

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield broken
    finally:
        for hook in hooks:
            hook.remove()


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return _is_finite(list(value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True
