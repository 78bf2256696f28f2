"""Loggers by name: CSV by its lines, MLflow itself where it is installed, modules that note how they are called."""

import csv
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from mask2former import get_cfg
from mask2former.d2.events import EventStorage
from mask2former.engine.loggers import CSVWriter, build_loggers, check_loggers
from tests.engine.test_trainer import train
from tests.engine.test_writers import run
from tests.helpers.training import tiny_cfg


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_csv_has_a_line_for_each_scalar(tmp_path):
    path = tmp_path / "metrics.csv"
    run([CSVWriter(path)], 0, 4)
    lines = rows(path)
    assert lines[0] == ["iteration", "name", "value"]
    assert ["1", "total_loss", "0.5"] in lines
    assert ["3", "lr", "0.0001"] in lines
    assert len(lines) == 1 + 2 * 4


def test_csv_continues_after_resume(tmp_path):
    path = tmp_path / "metrics.csv"
    run([CSVWriter(path)], 0, 6)
    with path.open("a") as file:
        file.write("2,total_loss,1.")  # the interrupted run died while writing
    run([CSVWriter(path, start_iter=4)], 4, 8)
    assert [row[0] for row in rows(path) if row[1] == "total_loss"] == ["1", "3", "5", "7"]
    assert all(len(row) == 3 for row in rows(path))


def test_new_run_keeps_the_csv_of_an_earlier_one(tmp_path):
    path = tmp_path / "metrics.csv"
    run([CSVWriter(path)], 0, 6)
    run([CSVWriter(path)], 0, 2)
    assert [row[0] for row in rows(path) if row[1] == "lr"] == ["1"]
    assert [row[0] for row in rows(tmp_path / "metrics.csv.old") if row[1] == "lr"] == ["1", "3", "5"]


@pytest.mark.parametrize("names", [[], ["csv"], ["json", "csv"]])
def test_key_chooses(tmp_path, names):
    cfg = tiny_cfg(tmp_path)
    cfg.LOGGERS.NAMES = names
    train(cfg)
    files = {path.name for path in tmp_path.iterdir()}
    assert ("metrics.csv" in files, "metrics.json" in files) == ("csv" in names, "json" in names)
    assert not any(name.startswith("events") for name in files)
    if len(names) == 2:
        lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
        values = {(line["iteration"], name): value for line in lines for name, value in line.items()}
        for iteration, name, value in rows(tmp_path / "metrics.csv")[1:]:
            assert values[int(iteration), name] == float(value)


def test_unknown_logger_is_named(tmp_path):
    cfg = get_cfg()
    cfg.LOGGERS.NAMES = ["tensorbord"]
    with pytest.raises(ValueError, match=r"LOGGERS\.NAMES has 'tensorbord'.*did you mean tensorboard"):
        check_loggers(cfg)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_package_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    cfg = tiny_cfg(tmp_path)
    cfg.LOGGERS.NAMES = [name]
    with pytest.raises(ValueError, match=rf"'{name}', whose package is not installed: pip install {name}"):
        build_loggers(cfg, start_iter=0)


class Wandb:
    """Notes what it is called with, as the module `wandb` is."""

    def __init__(self):
        self.__spec__ = importlib.util.find_spec("json")
        self.starts, self.logged, self.finished = [], [], 0

    def init(self, **arguments):
        self.starts.append(arguments)
        return SimpleNamespace(
            id=arguments["id"] or f"run{len(self.starts)}",
            log=lambda scalars, step: self.logged.append((step, dict(scalars))),
            finish=lambda: setattr(self, "finished", self.finished + 1),
        )


def test_wandb(tmp_path, monkeypatch):
    """A resumed run continues that of Weights & Biases, a new one in the same folder does not."""
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    cfg = tiny_cfg(tmp_path)
    cfg.LOGGERS.NAMES, cfg.LOGGERS.PROJECT, cfg.LOGGERS.RUN = ["wandb", "json"], "boats", "first"
    train(cfg)
    start = wandb.starts[0]
    assert (start["project"], start["name"], start["id"], start["dir"]) == ("boats", "first", None, str(tmp_path))
    assert start["config"]["SOLVER.BASE_LR"] == 0.05
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [{"iteration": step, **scalars} for step, scalars in wandb.logged] == lines
    assert wandb.finished == 1
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    train(cfg, resume=True)
    assert (wandb.starts[1]["id"], wandb.starts[1]["resume"]) == ("run1", "allow")
    assert wandb.logged[len(lines)][0] == 5  # as an uninterrupted run does
    train(cfg)
    assert wandb.starts[2]["id"] is None


class Client:
    """Notes what it is called with, as the client of `mlflow` is."""

    def __init__(self, tracking_uri):
        self.uri = tracking_uri
        self.params, self.metrics, self.calls = {}, [], []
        Client.made.append(self)

    def get_experiment_by_name(self, name):
        self.calls.append(("experiment", name))

    def create_experiment(self, name):
        return f"number of {name}"

    def create_run(self, experiment, run_name):
        self.calls.append((experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="run1"))

    def update_run(self, run, status):
        self.calls.append((run, status))

    def log_param(self, run, key, value):
        self.params[key] = value

    def log_batch(self, run, metrics):
        assert run == "run1"
        self.metrics += metrics

    def set_terminated(self, run):
        self.calls.append((run, "end"))


def test_calls_of_mlflow(tmp_path, monkeypatch):
    Client.made = []
    module = SimpleNamespace(
        MlflowClient=Client,
        entities=SimpleNamespace(Metric=lambda name, value, time, step: (name, value, step)),
        __spec__=importlib.util.find_spec("json"),
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cfg = tiny_cfg(tmp_path)
    cfg.LOGGERS.NAMES, cfg.LOGGERS.PROJECT, cfg.LOGGERS.RUN = ["mlflow"], "boats", "first"
    [writer] = build_loggers(cfg, start_iter=0)
    with EventStorage(3) as storage:
        storage.put_scalar("segm/AP", 40.0, smoothing_hint=False)
        storage.put_scalar("segm/APs", float("nan"), smoothing_hint=False)
        writer.write(storage)
        writer.write(storage)
    writer.close()
    client = Client.made[0]
    assert client.uri == f"sqlite:///{(tmp_path / 'mlflow.db').resolve().as_posix()}"
    assert client.metrics == [("segm/AP", 40.0, 3)]
    assert client.params["SOLVER.BASE_LR"] == "0.05"
    assert client.calls == [("experiment", "boats"), ("number of boats", "first"), ("run1", "end")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    build_loggers(cfg, start_iter=4)
    assert (Client.made[1].uri, Client.made[1].calls) == ("http://example.org", [("run1", "RUNNING")])


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cfg = tiny_cfg(tmp_path)
    cfg.LOGGERS.NAMES, cfg.LOGGERS.PROJECT = ["mlflow", "json"], "boats"
    train(cfg)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    train(cfg, resume=True)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{(tmp_path / 'mlflow.db').resolve().as_posix()}")
    [experiment] = [each for each in client.search_experiments() if each.name == "boats"]
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["SOLVER.BASE_LR"] == "0.05"
    history = {each.step: each.value for each in client.get_metric_history(found.info.run_id, "total_loss")}
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {line["iteration"] for line in lines} <= history.keys()
    assert history[5] == pytest.approx(lines[-1]["total_loss"])
