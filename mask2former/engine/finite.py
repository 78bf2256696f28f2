"""Losses and gradient norm on their way from the device to the log, checked before they can do harm."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler

from mask2former.d2 import comm
from mask2former.engine.optimizer import nonfinite_gradients

MAX_SKIPPED_STEPS = 40
"""So many float16 steps in a row may overflow while the loss scale, first 2^16, is halved; not more."""


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is infinite or undefined. The weights are those from before the step."""


class FiniteGuard:
    """Reads the scalars of each step before the update, and refuses what is not finite.

    One transfer of a few numbers serves the check and the log. It waits for the backward pass, as the loss
    scaler of float16 training does anyway.
    """

    def __init__(self, model: nn.Module, scaler: GradScaler) -> None:
        self._model = model
        self._scaler = scaler
        self._skipped_steps = 0

    def read(
        self,
        iteration: int,
        losses: Mapping[str, Tensor],
        grad_norm: Tensor,
        batch: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """Losses and `grad_norm` as numbers, averaged over processes; every process must call it.

        Args:
            losses: scalar tensors of this process.
            grad_norm: scalar tensor, norm of the unscaled gradients before clipping.
            batch: the inputs of this process; messages name their `file_name` and `image_id`.

        Raises:
            NonFiniteError: a loss of this process is not finite, or a gradient is not, unless float16's loss
                scale is still to be lowered and the scaler leaves the step out.
        """
        names = [*losses, "grad_norm"]
        local = torch.stack([value.detach().float() for value in (*losses.values(), grad_norm)])
        mean = local.clone()
        if comm.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= comm.get_world_size()
        local_values, mean_values = torch.stack([local, mean]).tolist()
        where = f"iteration {iteration}, rank {comm.get_rank()}, batch: {describe_batch(batch)}"
        self._check_losses(dict(zip(losses, local_values, strict=False)), where)
        self._check_grad_norm(local_values[-1], where)
        return dict(zip(names, mean_values, strict=True))

    def _check_losses(self, losses: dict[str, float], where: str) -> None:
        broken = [f"{name} = {value}" for name, value in losses.items() if not math.isfinite(value)]
        if broken:
            raise NonFiniteError(f"Loss is not finite: {', '.join(broken)} at {where}")

    def _check_grad_norm(self, grad_norm: float, where: str) -> None:
        if math.isfinite(grad_norm):
            self._skipped_steps = 0
            return
        self._skipped_steps += 1
        if not self._scaler.is_enabled() or self._skipped_steps > MAX_SKIPPED_STEPS:
            names = ", ".join(nonfinite_gradients(self._model))
            raise NonFiniteError(f"Gradient is not finite, first in {names}, at {where}")


def describe_batch(batch: Sequence[Mapping[str, Any]]) -> str:
    """File names and image ids of a batch, for messages."""
    return ", ".join(f"{item.get('file_name', '?')} (image_id {item.get('image_id', '?')})" for item in batch)
