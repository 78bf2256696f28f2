"""Losses and gradient norm on their way from the device to the log, checked before they can do harm."""

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.data.plain import to_plain
from mask2former.engine.optimizer import nonfinite_gradients

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 40
"""So many float16 steps in a row may overflow while the loss scale, first 2^16, is halved; not more."""


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is infinite or undefined. The weights are those from before the step.

    Attributes:
        iteration: of the step.
        batches: in the main process the inputs of the processes that the message names, as plain data by rank.
    """

    def __init__(self, message: str, *, iteration: int = -1, batches: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.batches = dict(batches or {})


class FiniteGuard:
    """Reads the scalars of each step before the update, and refuses what is not finite.

    One transfer of a few numbers serves the check, the log and the agreement of processes on what comes next. It
    waits for the backward pass, as the loss scaler of float16 training does anyway.

    Args:
        skip_limit: of steps that are not finite so many in a row are to be left out; only then it is an error.

    Attributes:
        skips: whether the step that was read last is to be left out, in all processes.
        counts: scalars to be shown: `skipped_steps`, of the whole run, if steps may be left out.
    """

    def __init__(self, model: nn.Module, scaler: GradScaler, *, skip_limit: int = 0) -> None:
        self._model = model
        self._scaler = scaler
        self._limit = skip_limit
        self._overflows = 0  # in a row, as the next
        self._skipped = 0
        self._all_skipped = 0
        self.skips = False

    @property
    def counts(self) -> dict[str, float]:
        return {"skipped_steps": float(self._all_skipped)} if self._limit else {}

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        counts = {"overflows": self._overflows, "skipped": self._skipped, "all_skipped": self._all_skipped}
        return counts if any(counts.values()) else {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting."""
        self._overflows, self._skipped = state["overflows"], state["skipped"]
        self._all_skipped = state["all_skipped"]

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
            The numbers by name, none of a step that is to be left out; and the flags that are set in any process.

        Raises:
            NonFiniteError: in all processes, when in one a loss is not finite, or a gradient is not, unless
                float16's loss scale is still to be lowered and the scaler leaves the step out, or the limit of steps
                to leave out is not reached.
        """
        names = [*losses, "grad_norm"]
        local = torch.stack([value.detach().float() for value in (*losses.values(), grad_norm)])
        total = torch.cat([local, (~local.isfinite()).any().float()[None], local.new_tensor(flags)])
        if comm.get_world_size() > 1:
            dist.all_reduce(total)
        numbers = torch.cat([local, total]).tolist()
        values, sums = numbers[: len(names)], numbers[len(names) :]
        self.skips = False
        if sums[len(names)]:
            self._judge(iteration, dict(zip(names, values, strict=True)), batch)
        else:
            self._overflows = self._skipped = 0
        means = [value / comm.get_world_size() for value in sums[: len(names)]]
        scalars = {} if self.skips else dict(zip(names, means, strict=True))
        return scalars, [flag > 0 for flag in sums[len(names) + 1 :]]

    def _judge(self, iteration: int, values: dict[str, float], batch: Sequence[Mapping[str, Any]]) -> None:
        """Raise, or leave out, what any process has to say against its values; not what the scaler takes care of."""
        where = f"iteration {iteration}, rank {comm.get_rank()}, batch: {describe_batch(batch)}"
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        losses = [f"{name} = {values[name]}" for name in broken if name != "grad_norm"]
        self._overflows += 1
        message = ""
        if losses:
            message = f"Loss is not finite: {', '.join(losses)} at {where}"
        elif broken and (not self._scaler.is_enabled() or self._overflows > MAX_SKIPPED_STEPS):
            message = f"Gradient is not finite, first in {', '.join(nonfinite_gradients(self._model))}, at {where}"
        messages = comm.all_gather(message)
        if not any(messages):
            return
        text = "\n".join(sorted(filter(None, messages), reverse=True))  # losses first
        if self._skipped < self._limit:
            self._skipped += 1
            self._all_skipped += 1
            self.skips = True
            logger.warning("Step left out, %d of at most %d in a row: %s", self._skipped, self._limit, text)
            return
        batches = comm.gather(to_plain(batch) if message else None)
        named = {rank: content for rank, content in enumerate(batches) if content is not None}
        raise NonFiniteError(text, iteration=iteration, batches=named)


def skip_limit(cfg: CfgNode) -> int:
    """How many steps in a row may be left out, by `SOLVER.NONFINITE` and `SOLVER.NONFINITE_LIMIT`.

    Raises:
        ValueError: the policy is neither "stop" nor "skip", or the limit not positive.
    """
    policy, limit = cfg.SOLVER.NONFINITE, cfg.SOLVER.NONFINITE_LIMIT
    if policy not in ("stop", "skip"):
        raise ValueError(f"SOLVER.NONFINITE is {policy!r}, expected stop or skip")
    if policy == "skip" and limit < 1:
        raise ValueError(f"SOLVER.NONFINITE_LIMIT is {limit}; to leave out no step, set SOLVER.NONFINITE to stop")
    return limit if policy == "skip" else 0


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
