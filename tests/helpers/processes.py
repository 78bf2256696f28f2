"""Several processes of one training, started in a moment: forked off a process that has imported everything."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.engine.launch import launch

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """What a process left: exit code, -9 if it had to be killed, and its output with errors."""

    code: int
    output: str


def run_processes(
    main: Callable[..., None],
    *args: Any,
    folder: Path,
    processes: int = 2,
    act: Callable[[list[int]], None] | None = None,
    timeout: float = 60,
) -> list[Ended]:
    """Launch `main(*args)` as torchrun does, in as many processes, each with a process group of its own.

    Args:
        main: a function of a module; args can be pickled.
        folder: where `output<rank>.txt` goes.
        act: called with the process ids once all processes have started, e.g. to send signals.
        timeout: seconds after which processes that still run are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.training", "torch.utils.tensorboard"])
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=_child, args=(rank, processes, port, folder, main, args)) for rank in range(processes)
    ]
    start = time.monotonic()
    try:
        for process in started:
            process.start()
        if act is not None:
            act([process.pid for process in started])
        ended = [_wait(process, start + timeout, folder / f"output{rank}.txt") for rank, process in enumerate(started)]
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it started
    return ended


def _wait(process: Any, end: float, output: Path) -> Ended:
    process.join(max(0.0, end - time.monotonic()))
    code = process.exitcode
    return Ended(code if code is not None else -signal.SIGKILL, output.read_text())


def wait_for(path: Path, timeout: float = 60) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def _child(
    rank: int, processes: int, port: int, folder: Path, main: Callable[..., None], args: tuple[Any, ...]
) -> None:
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # of workers that load data
    file = os.open(folder / f"output{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    values = (rank, processes, rank, processes, "127.0.0.1", port)
    os.environ.update(dict(zip(LAUNCHER_VARIABLES, map(str, values), strict=True)))
    launch(main, 1, args=args)
