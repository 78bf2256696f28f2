"""Starting one training process per device, on one machine or several, or joining those torchrun started."""

import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mask2former.d2 import comm

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run `main_func(*args)` in every process of a training; called as Detectron2's function of this name.

    Under torchrun (RANK, WORLD_SIZE and LOCAL_RANK are set) this process is one of them, whatever the other
    arguments say; it is the way to train with several processes on CPUs. Otherwise `num_gpus_per_machine`
    processes are started here, one per GPU; 0 or 1 on one machine runs in this process.

    Args:
        dist_url: `tcp://host:port` of the process with rank 0, or "auto" (a free port, one machine only).
        timeout: after which a collective operation that other processes do not join fails.

    Raises:
        ValueError: more GPUs are asked for than there are, or the arguments contradict each other.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _run_under_torchrun(main_func, args, timeout)
        return
    processes = max(num_gpus_per_machine, 1)
    if num_gpus_per_machine > torch.cuda.device_count() and num_gpus_per_machine > 1:
        raise ValueError(
            f"--num-gpus {num_gpus_per_machine}, but this machine has {torch.cuda.device_count()} usable GPUs. "
            f"Ask for those, or train with several CPU processes: torchrun --nproc-per-node {processes} "
            "tools/train_net.py ..."
        )
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"--machine-rank {machine_rank} must lie in [0, --num-machines {num_machines})")
    world_size = processes * num_machines
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("several machines need --dist-url tcp://HOST:PORT of the first one, not 'auto'")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    first_rank = machine_rank * processes
    mp.spawn(
        _run_spawned,
        nprocs=processes,
        args=(main_func, args, first_rank, world_size, processes, dist_url, timeout),
    )


def _run_under_torchrun(main_func: Callable[..., Any], args: tuple[Any, ...], timeout: timedelta) -> None:
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        main_func(*args)
        return
    _run_in_group(
        main_func,
        args,
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        world_size=world_size,
        init_method="env://",
        timeout=timeout,
    )


def _run_spawned(
    local_rank: int,
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    first_rank: int,
    world_size: int,
    processes: int,
    dist_url: str,
    timeout: timedelta,
) -> None:
    _run_in_group(
        main_func,
        args,
        rank=first_rank + local_rank,
        local_rank=local_rank,
        processes=processes,
        world_size=world_size,
        init_method=dist_url,
        timeout=timeout,
    )


def _run_in_group(
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    rank: int,
    local_rank: int,
    processes: int,
    world_size: int,
    init_method: str,
    timeout: timedelta,
) -> None:
    """Join the process group, run, leave the group."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size, timeout=timeout)
    try:
        comm.create_local_process_group(processes)
        comm.synchronize()
        main_func(*args)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
