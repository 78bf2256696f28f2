"""Taking the batch of a step in parts, one after the other, whose gradients add up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.d2.config import CfgNode
from mask2former.engine.precision import Precision
from mask2former.modeling.whole_batch import seen_in_parts


def check_accumulation(cfg: CfgNode, *, world_size: int) -> None:
    """Check that the share of each process can be divided.

    Raises:
        ValueError: it cannot.
    """
    parts, batch = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH
    if parts < 1 or batch // world_size % parts:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {parts}, in which the {batch // world_size} images of a process (of "
            f"SOLVER.IMS_PER_BATCH {batch}) cannot be divided equally. IMS_PER_BATCH is the batch of a whole step: use "
            f"a multiple of {max(parts, 1) * world_size}."
        )


def losses_and_gradients(
    model: nn.Module,
    batch: Sequence[dict[str, Any]],
    *,
    parts: int,
    precision: Precision,
    scale: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """`total_loss` and what it is the sum of, part by part; gradients of the scaled loss add up in the parameters."""
    seen = []
    pieces = split_batch(batch, parts)
    for piece in pieces:
        with accumulating(model, batch, parts, is_last=piece is pieces[-1]):
            with precision.autocast():
                losses: dict[str, Tensor] = model(piece)
                total_loss = torch.stack([loss.float() for loss in losses.values()]).sum()
            scale(total_loss / parts).backward()
        seen.append({"total_loss": total_loss.detach(), **{name: loss.detach() for name, loss in losses.items()}})
    return mean_losses(seen)


def split_batch(batch: Sequence[dict[str, Any]], parts: int) -> list[Sequence[dict[str, Any]]]:
    """A batch in equally large parts, in order; the batch itself for one.

    Raises:
        ValueError: it cannot be divided.
    """
    if parts == 1:
        return [batch]
    size, rest = divmod(len(batch), parts)
    if rest or not size:
        raise ValueError(f"a batch of {len(batch)} images cannot be divided into SOLVER.ACCUMULATION_STEPS {parts}")
    return [batch[number * size : (number + 1) * size] for number in range(parts)]


@contextmanager
def accumulating(model: nn.Module, batch: Sequence[dict[str, Any]], parts: int, *, is_last: bool) -> Iterator[None]:
    """Context of forward and backward pass of one part of a batch.

    Losses count what is in the whole batch, and gradients wait for the last part to be averaged over processes.

    Args:
        model: what is called with the parts, maybe a wrapper for several processes.
        parts: how many, equally large.
    """
    waiting = nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync()
    with seen_in_parts(batch, parts), waiting:
        yield


def mean_losses(losses: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of a step, given those of its parts; what a part has no loss of counts as 0 there."""
    if len(losses) == 1:
        return dict(losses[0])
    names = dict.fromkeys(name for part in losses for name in part)
    return {name: torch.stack([p[name].float() for p in losses if name in p]).sum() / len(losses) for name in names}
