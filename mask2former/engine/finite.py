"""Losses and gradient norm on their way from the device to the log, checked before they can do harm."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
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

    One transfer of a few numbers serves the check, the log and the agreement of processes on what comes next. It
    waits for the backward pass, as the loss scaler of float16 training does anyway.
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
        *,
        flags: Sequence[bool] = (),
    ) -> tuple[dict[str, float], list[bool]]:
        """Losses and `grad_norm` as numbers, averaged over processes; every process must call it.

        Args:
            losses: scalar tensors of this process.
            grad_norm: scalar tensor, norm of the unscaled gradients before clipping.
            batch: the inputs of this process; messages name their `file_name` and `image_id`.
            flags: of this process, as many in each.

        Returns:
            The numbers by name, and the flags that are set in any process.

        Raises:
            NonFiniteError: in all processes, when in one a loss is not finite, or a gradient is not, unless
                float16's loss scale is still to be lowered and the scaler leaves the step out.
        """
        names = [*losses, "grad_norm"]
        local = torch.stack([value.detach().float() for value in (*losses.values(), grad_norm)])
        total = torch.cat([local, (~local.isfinite()).any().float()[None], local.new_tensor(flags)])
        if comm.get_world_size() > 1:
            dist.all_reduce(total)
        numbers = torch.cat([local, total]).tolist()
        values, sums = numbers[: len(names)], numbers[len(names) :]
        if sums[len(names)]:
            self._refuse(dict(zip(names, values, strict=True)), f"iteration {iteration}", batch)
        else:
            self._skipped_steps = 0
        means = [value / comm.get_world_size() for value in sums[: len(names)]]
        return dict(zip(names, means, strict=True)), [flag > 0 for flag in sums[len(names) + 1 :]]

    def _refuse(self, values: dict[str, float], moment: str, batch: Sequence[Mapping[str, Any]]) -> None:
        """Raise what any process has to say against its values; return if the scaler will take care of it."""
        where = f"{moment}, rank {comm.get_rank()}, batch: {describe_batch(batch)}"
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        losses = [f"{name} = {values[name]}" for name in broken if name != "grad_norm"]
        self._skipped_steps += 1
        message = ""
        if losses:
            message = f"Loss is not finite: {', '.join(losses)} at {where}"
        elif broken and (not self._scaler.is_enabled() or self._skipped_steps > MAX_SKIPPED_STEPS):
            message = f"Gradient is not finite, first in {', '.join(nonfinite_gradients(self._model))}, at {where}"
        messages = sorted(filter(None, comm.all_gather(message)), reverse=True)  # losses first
        if messages:
            raise NonFiniteError("\n".join(messages))


class RunningStatistics:
    """The statistics of normalisation layers as they were before a step: a forward pass changes them.

    So that weights from before a failed step do not go with statistics from within it.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [layer for layer in model.modules() if getattr(layer, "track_running_stats", False)]
        self._buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Remember them as they are."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)  # one kernel

    def restore(self) -> None:
        """Go back to what was remembered."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


def check_state(model: nn.Module) -> None:
    """Check that all weights and buffers are finite.

    Raises:
        NonFiniteError: with the names of the first three that are not.
    """
    state = model.state_dict()
    broken = (name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all())
    if names := list(islice(broken, 3)):
        raise NonFiniteError(f"{', '.join(names)}: not finite")


def describe_batch(batch: Sequence[Mapping[str, Any]]) -> str:
    """File names and image ids of a batch, for messages."""
    return ", ".join(f"{item.get('file_name', '?')} (image_id {item.get('image_id', '?')})" for item in batch)
