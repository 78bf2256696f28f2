"""What can happen to a training with several processes; functions for `run_processes`."""

import json
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

from mask2former import get_cfg
from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog
from mask2former.d2.evaluation import DatasetEvaluator, DatasetEvaluators
from mask2former.d2.events import get_event_storage
from mask2former.d2.structures import BitMasks, Instances
from mask2former.data.datasets.shapes import register_shapes
from mask2former.data.images import read_panoptic_png
from mask2former.data.loader import _init_worker
from mask2former.engine.hooks import Hook
from mask2former.engine.interrupt import StopRequest
from mask2former.engine.precision import Precision
from mask2former.engine.trainer import Trainer
from mask2former.modeling.layers import Linear
from mask2former.ops import cpu
from tests.helpers.catalog import registered_below
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


def killed(out: Path) -> None:
    """Process 1 dies after a step, without a word."""
    run(PlainTrainer, out, At(3, 1, lambda: os.kill(os.getpid(), signal.SIGKILL)))


class _Keeping(TinyModel):
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        losses = super().forward(batch)
        path = Path(os.environ["KEPT"], f"losses{comm.get_rank()}")
        path.write_text(json.dumps({name: float(loss) for name, loss in losses.items()}))
        return losses


class _KeepingTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return _Keeping(random=False)


def keeping(out: Path) -> None:
    """One step, of which each process keeps its losses."""
    os.environ["KEPT"] = str(out)
    run(_KeepingTrainer, out, MAX_ITER=1)


class Diverging(TinyModel):
    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        losses = super().forward(batch)
        if get_event_storage().iter == 2 and comm.get_rank() == 1:
            losses["loss_ce"] = losses["loss_ce"] * float("nan")
        return losses


class _DivergingTrainer(TinyTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return Diverging(random=False)


def diverging(out: Path) -> None:
    """Process 1 has a loss that is not finite, under float16's loss scaling."""
    half = Precision("cpu", torch.float16)
    Precision.from_config = classmethod(lambda cls, cfg, device: half)
    run(_DivergingTrainer, out)


def skipping(out: Path) -> None:
    """As before, in float32, and the step is left out."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    trainer = _DivergingTrainer(tiny_cfg(out, NONFINITE="skip", CHECKPOINT_PERIOD=0))
    trainer.train()
    torch.save(trainer.raw_model.state_dict(), out / f"weights{comm.get_rank()}.pt")


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


class KernelTrainer(TinyTrainer):
    """Its model has a layer whose kernel is chosen by measurement."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = TinyModel(random=False)
        model.backbone = Linear(4, 8)
        return model


def kernels(out: Path) -> None:
    """Processes measure differently; each keeps what it chose in the end."""
    os.environ[cpu.LINEAR_VARIABLE] = "auto"
    cpu._LARGEST_SLOW_CONVOLUTION = 0
    cpu._measure = lambda: [1.0, 0.5 + comm.get_rank()]
    run(KernelTrainer, out, MAX_ITER=2)
    (out / f"kernels{comm.get_rank()}").write_text(json.dumps(cpu.convolution_is_faster))


class _Waiting(PlainTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> Iterator[list[dict[str, Any]]]:
        for number, batch in enumerate(super().build_train_loader(cfg, start_iteration=start_iteration)):
            while number == 3 and comm.get_rank() == 1 and not Path(cfg.OUTPUT_DIR, "said").exists():
                time.sleep(0.05)
            yield batch


def waiting(out: Path, text: str, seconds: float) -> None:
    """Process 1 waits for data until the main one says `text`; its watchdog waits for `seconds`."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    if comm.is_main_process():
        logging.getLogger().addHandler(Touching(out / "said", text))
    settings = {"WATCHDOG_SECONDS": seconds if comm.get_rank() else 0.4, "CHECKPOINT_PERIOD": 0}
    _Waiting(tiny_cfg(out, **settings)).train()


class _WaitingInEvaluation(PlainTrainer):
    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return _SlowBatches([[{"image": torch.ones(4)}]] * 3, Path(cfg.OUTPUT_DIR, "said"))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return DatasetEvaluators([])


class _SlowBatches(list[Any]):
    def __init__(self, batches: list[Any], until: Path) -> None:
        super().__init__(batches)
        self.until = until

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(super().__iter__()):
            while number == 1 and comm.get_rank() == 1 and not self.until.exists():
                time.sleep(0.05)
            yield batch


def waiting_in_evaluation(out: Path, text: str) -> None:
    """Process 1 waits for data of an evaluation until the main one says `text`."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    if comm.is_main_process():
        logging.getLogger().addHandler(Touching(out / "said", text))
    cfg = tiny_cfg(out, WATCHDOG_SECONDS=0.4, CHECKPOINT_PERIOD=0, MAX_ITER=1)
    cfg.DATASETS.TEST = ("three",)
    _WaitingInEvaluation(cfg).train()


class Touching(logging.Handler):
    """Makes a file when a message holds some text."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__()
        self.path, self.text = path, text

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.path.touch()


class _NearTruth(nn.Module):
    """The annotations of an image of `shapes_val`, moved by up to four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.records = {record["file_name"]: record for record in DatasetCatalog.get("shapes_val")}

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._segment(self.records[item["file_name"]]) for item in inputs]

    def _segment(self, record: dict[str, Any]) -> dict[str, Any]:
        ids = torch.from_numpy(read_panoptic_png(record["pan_seg_file_name"]).astype("int32"))
        ids = ids.roll(record["image_id"] % 5, dims=1)
        segments, masks = record["segments_info"], [ids == info["id"] for info in record["segments_info"]]
        sem_seg = torch.zeros(8, *ids.shape)
        for info, mask in zip(segments, masks, strict=True):
            sem_seg[info["category_id"], mask] = 1.0
        things = [number for number, info in enumerate(segments) if info["category_id"] < 4]
        instances = Instances(tuple(ids.shape))
        instances.pred_masks = torch.stack([masks[number] for number in things])
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
        instances.pred_classes = torch.tensor([segments[number]["category_id"] for number in things])
        instances.scores = torch.tensor([0.9 - 0.01 * (record["image_id"] * 7 + number) % 0.5 for number in things])
        found = [{"id": s["id"], "category_id": s["category_id"], "isthing": s["category_id"] < 4} for s in segments]
        return {"sem_seg": sem_seg, "panoptic_seg": (ids, found), "instances": instances}


def evaluation(out: Path, data: Path) -> None:
    """Score predictions for drawn images; the main process keeps the results."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(out)
    cfg.DATASETS.TEST = ("shapes_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 8
    test = cfg.MODEL.MASK_FORMER.TEST
    test.PANOPTIC_ON = test.INSTANCE_ON = test.BOUNDARY_ON = True
    with registered_below(data, register_shapes):
        results = Trainer.test(cfg, _NearTruth())
    if comm.is_main_process():
        (out / "results.json").write_text(json.dumps(results))


class LargeTrainer(TinyTrainer):
    """Its checkpoints are larger than its log."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = TinyModel()
        model.register_buffer("ballast", torch.zeros(100_000))
        return model


def full_disk(out: Path) -> None:
    """No file may grow beyond 200 kB after the fifth step."""
    import resource

    limits = (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    fill = At(4, 0, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    run(LargeTrainer, out, fill, MAX_ITER=8, CHECKPOINT_PERIOD=2)
