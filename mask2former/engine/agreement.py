"""Processes that fail together: nobody waits for one that has given up."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from mask2former.d2 import comm

logger = logging.getLogger(__name__)


class OtherProcessError(RuntimeError):
    """Another process has failed. The message is that of its error."""


@contextmanager
def failing_together() -> Iterator[None]:
    """An error that one process raises inside ends all of them, after all have come to the end.

    Inside, no process may wait for another. Every process must enter.

    Raises:
        OtherProcessError: in the processes that had no error of their own.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    messages = comm.all_gather(f"{type(error).__name__}: {error}" if error else None)
    if error:
        raise error
    for rank, message in enumerate(messages):
        if message:
            raise OtherProcessError(f"process {rank} failed: {message}")


def translated(error: BaseException) -> BaseException:
    """The error itself; or, for one of communication, that another process has ended, which is what it means."""
    is_of_communication = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
    if comm.get_world_size() == 1 or not isinstance(error, RuntimeError) or not is_of_communication:
        return error
    reason = str(error).strip().splitlines()[0]
    return OtherProcessError(f"another process has ended; it says why in its own message and log ({reason})")


def log_failure(error: BaseException, iteration: int) -> None:
    """Log what ended a training, with a traceback where it is of this process."""
    if isinstance(error, OtherProcessError):
        logger.error("Stopped at iteration %d: %s", iteration, error)
    elif isinstance(error, Exception):
        logger.exception("Training failed at iteration %d", iteration)
