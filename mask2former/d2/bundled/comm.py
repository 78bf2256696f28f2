"""Communication between processes; with a single one, every function answers for it alone."""

import functools
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_workers_per_machine: int | None = None


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _has_group() else 1


def get_rank() -> int:
    """Number of this process among all."""
    return dist.get_rank() if _has_group() else 0


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_main_process() -> bool:
    """Whether this is process 0."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Tell how many processes run on each machine; a launcher calls this in every process.

    Raises:
        AssertionError: when that number does not divide the number of processes.
    """
    global _workers_per_machine
    if get_world_size() % num_workers_per_machine:
        raise AssertionError(f"{get_world_size()} processes cannot be split into {num_workers_per_machine} a machine.")
    _workers_per_machine = num_workers_per_machine


def get_local_size() -> int:
    """Number of processes on this machine."""
    if not _has_group():
        return 1
    return _workers_per_machine or int(_torchrun_variable("LOCAL_WORLD_SIZE"))


def get_local_rank() -> int:
    """Number of this process among those of its machine."""
    if not _has_group():
        return 0
    if _workers_per_machine is not None:
        return get_rank() % _workers_per_machine
    return int(_torchrun_variable("LOCAL_RANK"))


def _torchrun_variable(name: str) -> str:
    if name not in os.environ:
        raise AssertionError(
            f"{name} is unknown: call comm.create_local_process_group(num_workers_per_machine) after "
            "torch.distributed.init_process_group(), or start the processes by torchrun."
        )
    return os.environ[name]


def synchronize() -> None:
    """Wait until all processes are here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == "nccl":
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.cache
def _cpu_group() -> Any:
    """All processes, communicating through CPU memory: objects of any size cost no GPU memory."""
    return dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else dist.group.WORLD


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """The picklable `data` of every process, in the order of ranks."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """The picklable `data` of every process on process `dst`; an empty list elsewhere."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group) if dist.get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number that is the same on all processes; every process must call this."""
    return int(all_gather(np.random.randint(2**31))[0])
