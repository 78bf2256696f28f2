"""What can happen to a training with several processes; functions for `run_processes`."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.events import get_event_storage
from mask2former.data.loader import _init_worker
from mask2former.engine.hooks import Hook
from mask2former.engine.interrupt import StopRequest
from mask2former.engine.precision import Precision
from mask2former.engine.trainer import Trainer
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class PlainTrainer(TinyTrainer):
    """Without random numbers."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return TinyModel(random=False)


class At(Hook):
    """Does something after one iteration on one process."""

    def __init__(self, iteration: int, rank: int, action: Any) -> None:
        self.when, self.action = (iteration, rank), action

    def after_step(self) -> None:
        if (self.trainer.iter, comm.get_rank()) == self.when:
            self.action()


def run(trainer_class: type[Trainer], out: Path, *hooks: Hook, **solver: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    trainer = trainer_class(tiny_cfg(out, **{"MAX_ITER": 1000, "CHECKPOINT_PERIOD": 0, **solver}))
    trainer.register_hooks(hooks)
    trainer.train()


def signal_to_one(out: Path, rank: int, number: int) -> None:
    """One process gets a signal, both must stop after the same step."""
    run(PlainTrainer, out, At(4, rank, lambda: os.kill(os.getpid(), number)))


class _Images(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.full((4,), float(index % 7))}


class _Workers(PlainTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> DataLoader:
        return DataLoader(_Images(), batch_size=2, num_workers=2, collate_fn=list, worker_init_fn=_init_worker)


class _Slow(Hook):
    def after_step(self) -> None:
        time.sleep(0.3)
        if self.trainer.iter == 2:
            Path(self.trainer.cfg.OUTPUT_DIR, f"ready{comm.get_rank()}").touch()


def slow(out: Path) -> None:
    """Steps slow enough to be interrupted in between."""
    run(PlainTrainer, out, _Slow())


def signals_to_all(out: Path) -> None:
    """Processes with workers, which wait for signals to their groups."""
    run(_Workers, out, _Slow())


class _Broken(PlainTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> Iterator[list[dict[str, Any]]]:
        for number, batch in enumerate(super().build_train_loader(cfg, start_iteration=start_iteration)):
            if number == 3 and comm.get_rank() == 1:
                raise OSError("disk gone")
            yield batch


def broken_data(out: Path) -> None:
    """Process 1 loses its data after three steps."""
    run(_Broken, out)


class _Diverging(TinyModel):
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        losses = super().forward(batch)
        if get_event_storage().iter == 2 and comm.get_rank() == 1:
            losses["loss_ce"] = losses["loss_ce"] * float("nan")
        return losses


class _DivergingTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return _Diverging(random=False)


def diverging(out: Path) -> None:
    """Process 1 has a loss that is not finite, under float16's loss scaling."""
    half = Precision("cpu", torch.float16)
    Precision.from_config = classmethod(lambda cls, cfg, device: half)
    run(_DivergingTrainer, out)


class _NoModel(PlainTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        if comm.get_rank() == 1:
            raise FileNotFoundError("no weights here")
        return super().build_model(cfg)


def broken_setup(out: Path) -> None:
    """Process 1 cannot build its model."""
    run(_NoModel, out)


class _Hanging(TinyModel):
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if get_event_storage().iter == 3 and comm.get_rank() == 1:
            Path(os.environ["HANGS"]).touch()
            time.sleep(600)
        return super().forward(batch)


class _HangingTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return _Hanging(random=False)


def hanging(out: Path) -> None:
    """Process 1 hangs, process 0 waits for it in a collective operation."""
    os.environ["HANGS"] = str(out / "hangs")
    StopRequest.__init__.__kwdefaults__["grace"] = 1.0
    run(_HangingTrainer, out)


class _Seeing(TinyModel):
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        iteration = get_event_storage().iter
        self.statistic.fill_(float(comm.get_rank()))
        torch.save(torch.rand(8), Path(os.environ["NUMBERS"], f"{iteration}-{comm.get_rank()}.pt"))
        return super().forward(batch)


class _SeeingTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = _Seeing(random=False)
        model.register_buffer("statistic", torch.tensor(-1.0))
        return model


def random_numbers(out: Path) -> None:
    """Keeps the random numbers that the model sees, and buffers at the end."""
    os.environ["NUMBERS"] = str(out)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    trainer = _SeeingTrainer(tiny_cfg(out, MAX_ITER=2))
    trainer.train()
    torch.save(trainer.raw_model.statistic, out / f"buffer{comm.get_rank()}.pt")
    (out / f"scalars{comm.get_rank()}").write_text(" ".join(trainer.storage.latest()))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class _Scored(PlainTrainer):
    """Evaluations are worth the same always, and the main process alone knows."""

    def evaluate(self) -> dict[str, Any]:
        return {"segm": {"AP": 1.0}} if comm.is_main_process() else {}


def early_end(out: Path, metric: str) -> None:
    """Training ends after three evaluations, two of them in vain; keeps the last iteration."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    cfg = tiny_cfg(out, MAX_ITER=1000, CHECKPOINT_PERIOD=0)
    cfg.TEST.EVAL_PERIOD = 2
    cfg.SOLVER.BEST_CHECKPOINT.METRIC = metric
    cfg.SOLVER.EARLY_STOP.METRIC, cfg.SOLVER.EARLY_STOP.PATIENCE = metric, 2
    trainer = _Scored(cfg)
    trainer.train()
    (out / f"ended{comm.get_rank()}").write_text(str(trainer.iter))
