"""Starting one training process per device, on one machine or several, or joining those torchrun started."""

import logging
import os
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.elastic.multiprocessing.errors import record

from mask2former.d2 import comm

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)
GRACE_SECONDS = 30
"""When one process has failed, the others have so long to save, and so long again after SIGTERM."""

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}
"""Programs that start processes, with the variables that tell rank, processes, and both on the machine."""


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

    Under torchrun (RANK and WORLD_SIZE are set), srun or mpirun with several tasks this process is one of them,
    whatever the other arguments say; it is the way to train with several processes on CPUs. Otherwise
    `num_gpus_per_machine` processes are started here, one per GPU; 0 or 1 on one machine runs in this process.

    After Ctrl-C the process ends with one line and 130, after SIGTERM with 143.

    Args:
        dist_url: `tcp://host:port` of the process with rank 0, or "auto" (a free port, one machine only).
        timeout: after which a collective operation that other processes do not join fails.

    Raises:
        ValueError: more GPUs are asked for than there are, or the arguments contradict each other, or srun or mpirun
            does not say where its processes meet.
    """
    try:
        place = _given_place(num_machines, dist_url) or _single_place(num_gpus_per_machine, num_machines, machine_rank)
        if place is None:
            _spawn(main_func, args, num_gpus_per_machine, num_machines, machine_rank, dist_url, timeout)
        else:
            _run(place, main_func, args, timeout)
    except KeyboardInterrupt:
        logger.error("Interrupted")
        raise SystemExit(128 + signal.SIGINT) from None


@dataclass(frozen=True)
class _Place:
    """One process among all, and where they meet."""

    rank: int
    world_size: int
    local_rank: int
    processes: int
    """On this machine."""
    init_method: str


def _given_place(num_machines: int, dist_url: str) -> _Place | None:
    """What a program that starts processes says in the environment; None if there is none."""
    for program, (rank, world_size, local_rank, processes) in LAUNCHERS.items():
        if rank not in os.environ or world_size not in os.environ:
            continue
        if program != "torchrun" and (num_machines > 1 or os.environ[world_size] == "1"):
            continue  # the arguments say what is to be done
        init_method = "env://" if program == "torchrun" or "MASTER_PORT" in os.environ else dist_url
        if init_method == "auto":
            raise ValueError(
                f"{program} started {os.environ[world_size]} processes, but where do they meet? Set MASTER_ADDR (the "
                "first machine) and MASTER_PORT for all of them; or start one per machine, and there torchrun"
            )
        number, total = int(os.environ[rank]), int(os.environ[world_size])
        here = re.match(r"\d+", os.environ.get(processes, ""))  # srun writes 4(x2) for twice four
        on_machine = int(here[0]) if here else min(torch.cuda.device_count(), total) or total
        local = int(os.environ.get(local_rank, number % on_machine))
        return _Place(number, total, local, on_machine, init_method)
    return None


def _single_place(num_gpus: int, num_machines: int, machine_rank: int) -> _Place | None:
    """The place of a process that is alone; None if several have to be started."""
    if not 0 <= machine_rank < num_machines:
        raise ValueError(f"--machine-rank {machine_rank} must lie in [0, --num-machines {num_machines})")
    if num_gpus > torch.cuda.device_count() and num_gpus > 1:
        raise ValueError(
            f"--num-gpus {num_gpus}, but this machine has {torch.cuda.device_count()} usable GPUs. "
            f"Ask for those, or train with several CPU processes: torchrun --nproc-per-node {num_gpus} "
            "tools/train_net.py ..."
        )
    return _Place(0, 1, 0, 1, "") if max(num_gpus, 1) * num_machines == 1 else None


def _spawn(
    main_func: Callable[..., Any],
    args: tuple[Any, ...],
    num_gpus: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    timeout: timedelta,
) -> None:
    """Start one process per GPU of this machine, hand them what it is told to do, and wait for all."""
    processes = max(num_gpus, 1)
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("several machines need --dist-url tcp://HOST:PORT of the first one, not 'auto'")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    first_rank, world_size = machine_rank * processes, processes * num_machines
    places = [_Place(first_rank + local, world_size, local, processes, dist_url) for local in range(processes)]
    children = mp.start_processes(
        _run_spawned, args=(places, main_func, args, timeout), nprocs=processes, join=False, start_method="spawn"
    )

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children.processes:
            if child.is_alive():
                os.kill(child.pid, number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not children.join(grace_period=GRACE_SECONDS):
            pass
    except mp.ProcessExitedException as error:
        raise SystemExit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_spawned(
    local_rank: int, places: list[_Place], main_func: Callable[..., Any], args: tuple[Any, ...], timeout: timedelta
) -> None:
    try:
        _run(places[local_rank], main_func, args, timeout)
    except KeyboardInterrupt:  # which PyTorch takes for success
        raise SystemExit(128 + signal.SIGINT) from None


def _run(place: _Place, main_func: Callable[..., Any], args: tuple[Any, ...], timeout: timedelta) -> None:
    """Join the process group if there are several processes, run, leave the group."""
    main_func = record(main_func)  # torchrun shows the error of the process that failed first
    if place.world_size == 1:
        main_func(*args)
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        backend, init_method=place.init_method, rank=place.rank, world_size=place.world_size, timeout=timeout
    )
    comm.create_local_process_group(place.processes)
    comm.synchronize()
    main_func(*args)
    # After an error the end of the process closes the group: its message comes before those of processes that wait.
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
