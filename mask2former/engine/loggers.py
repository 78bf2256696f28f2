"""Which writers of metrics `LOGGERS` asks for; those besides JSON and TensorBoard: CSV, Weights & Biases, MLflow."""

import csv
import importlib
import importlib.util
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import flat_settings
from mask2former.d2.events import EventStorage
from mask2former.engine.writers import EventWriter, JSONWriter, ScalarWriter, TensorBoardWriter
from mask2former.files import free_old_name, write_text
from mask2former.similar import did_you_mean


@dataclass(frozen=True)
class Run:
    """What a logger is told about the run."""

    folder: Path
    """OUTPUT_DIR."""
    start_iter: int = 0
    project: str = "mask2former"
    name: str = ""
    """For people; "" lets the logger invent one."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def kept_id(self, file: str) -> str | None:
        """The id by which the logger knows the run that is resumed, from a file in `folder`."""
        path = self.folder / file
        return path.read_text(encoding="utf-8").strip() if self.start_iter > 0 and path.is_file() else None


def check_loggers(cfg: CfgNode) -> None:
    """Check that all loggers are known and installed.

    Raises:
        ValueError: one is not.
    """
    for name in cfg.LOGGERS.NAMES:
        if name not in LOGGERS:
            raise ValueError(f"LOGGERS.NAMES has {name!r}, which is none{did_you_mean(name, LOGGERS, else_all=True)}")
        if name in PACKAGES and importlib.util.find_spec(name) is None:
            raise ValueError(_how_to_install(name))


def build_loggers(cfg: CfgNode, *, start_iter: int) -> list[EventWriter]:
    """The writers of `LOGGERS.NAMES`, which write to OUTPUT_DIR and where the environment tells them to.

    Raises:
        ValueError: see `check_loggers`.
    """
    check_loggers(cfg)
    node = cfg.LOGGERS
    run = Run(Path(cfg.OUTPUT_DIR), start_iter, node.PROJECT, node.RUN, flat_settings(cfg))
    return [LOGGERS[name](run) for name in node.NAMES]


def _how_to_install(package: str) -> str:
    return (
        f"LOGGERS.NAMES has {package!r}, whose package is not installed: pip install {package} (or "
        f"mask2former[{package}]), or leave it out"
    )


class CSVWriter(ScalarWriter):
    """Lines `iteration,name,value`, for spreadsheets and pandas. A resumed run continues the file as it does JSON."""

    HEADER = ("iteration", "name", "value")

    def __init__(self, path: str | Path, *, start_iter: int = 0) -> None:
        path = Path(path)
        super().__init__()
        if path.exists() and start_iter == 0:
            os.replace(path, free_old_name(path))
        kept = list(_rows_before(path, start_iter)) if path.exists() else []
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.HEADER, *kept])
        write_text(path, text.getvalue())
        self._file = path.open("a", encoding="utf-8", newline="")

    def state_dict(self) -> dict[str, Any]:
        """Also the size of the file."""
        return {"size": os.fstat(self._file.fileno()).st_size, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the file end as it did when the state was taken."""
        super().load_state_dict(state)
        self._file.truncate(min(state["size"], os.fstat(self._file.fileno()).st_size))

    def write(self, storage: EventStorage) -> None:
        """Append a line for each new scalar."""
        for iteration, scalars in self._new.take(storage).items():
            csv.writer(self._file, lineterminator="\n").writerows((iteration, *item) for item in scalars.items())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows_before(path: Path, iteration: int) -> Iterator[list[str]]:
    """Whole lines of earlier iterations; one that was cut off in the middle is left out."""
    text = path.read_text(encoding="utf-8")
    for row in csv.reader(text[: text.rfind("\n") + 1].splitlines()[1:]):
        if len(row) == len(CSVWriter.HEADER) and int(row[0]) < iteration:
            yield row


class WandbWriter(ScalarWriter):
    """A run of Weights & Biases, which a resumed run continues; offline where WANDB_MODE says so."""

    def __init__(self, run: Run) -> None:
        wandb = _imported("wandb")
        kept = run.kept_id("wandb_run")
        super().__init__()
        self._run = wandb.init(
            project=run.project,
            name=run.name or None,
            id=kept,
            resume="allow" if kept else None,
            dir=str(run.folder),
            config=dict(run.settings),
        )
        write_text(run.folder / "wandb_run", self._run.id)

    def write(self, storage: EventStorage) -> None:
        """Log the scalars of all iterations since the last call."""
        for iteration, scalars in self._new.take(storage).items():
            self._run.log(scalars, step=iteration)

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


class MLflowWriter(ScalarWriter):
    """A run of MLflow, which a resumed run continues; in OUTPUT_DIR/mlflow.db unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, run: Run) -> None:
        mlflow = _imported("mlflow")
        self._metric: Callable[..., Any] = mlflow.entities.Metric
        here = f"sqlite:///{(run.folder / 'mlflow.db').resolve().as_posix()}"
        self._client = mlflow.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or here)
        super().__init__()
        kept = run.kept_id("mlflow_run")
        if kept is not None:
            self._id = kept
            self._client.update_run(kept, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        self._id = self._client.create_run(number, run_name=run.name or None).info.run_id
        for key, value in run.settings.items():
            self._client.log_param(self._id, key, str(value)[:500])
        write_text(run.folder / "mlflow_run", self._id)

    def write(self, storage: EventStorage) -> None:
        """Log the finite scalars of all iterations since the last call."""
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, iteration)
            for iteration, scalars in self._new.take(storage).items()
            for name, value in scalars.items()
            if math.isfinite(value)
        ]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id)


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(_how_to_install(package)) from error


PACKAGES = ("wandb", "mlflow")
"""Loggers that need a package of their name."""

LOGGERS: dict[str, Callable[[Run], EventWriter]] = {
    "json": lambda run: JSONWriter(run.folder / "metrics.json", start_iter=run.start_iter),
    "tensorboard": lambda run: TensorBoardWriter(run.folder, start_iter=run.start_iter),
    "csv": lambda run: CSVWriter(run.folder / "metrics.csv", start_iter=run.start_iter),
    "wandb": WandbWriter,
    "mlflow": MLflowWriter,
}
"""By the names that LOGGERS.NAMES may have; add to it to have one of your own."""
