"""From a folder of data to a config that trains on it: described, summarised, settings derived and written down."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tabulate import tabulate

from mask2former.checkpoint.configs import shipped_name
from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import flat_settings, merge_config_file, merge_key_values, parse_yaml
from mask2former.data.layouts import DataDescription, DataMixture, describe_all
from mask2former.data.summary import DataSummary
from mask2former.engine import derive
from mask2former.engine.derive import Conditions, Recipe, Setting
from mask2former.engine.model_choice import ModelChoice, choose_model
from mask2former.engine.probe import Fit, Worst, largest_batch
from mask2former.engine.setup import use_available_device
from mask2former.files import free_old_name, write_bytes, write_text

logger = logging.getLogger(__name__)

OUTPUT = "output/own_data"
CONFIG_FILE, DATA_FILE = "config.yaml", "data.yaml"
HEADER = "# What differs from the model's own settings, and why. Change it, or give KEY VALUE on the command line.\n"
BATCH = "SOLVER.IMS_PER_BATCH"
SAID_BY_DATA = (
    *("OUTPUT_DIR", "DATASETS.DESCRIPTIONS", "DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.RATIOS"),
    "INPUT.DATASET_MAPPER_NAME",
    *("MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"),
)
"""Keys for which `--data` and `--output` count, and not a config file."""
LONGEST_SHOWN = 80  # characters of a value in the table


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; only `data` is needed.

    Attributes:
        data: folder, file, or data description; several as `mask2former.data.layouts.describe_all` takes them.
        task: "instance", "panoptic", "semantic" or "auto".
        model, weights, from_scratch: see `mask2former.engine.model_choice.choose_model`.
        epochs: None for what suits the data.
        output: folder of the run.
        opts: KEY, VALUE, ...; they win over all that is derived.
        processes: that training will have.
        modules: to import first in processes that measure.
    """

    data: str | Sequence[str]
    task: str = "auto"
    model: str = ""
    weights: str = ""
    from_scratch: bool = False
    epochs: float | None = None
    output: str = OUTPUT
    opts: Sequence[str] = ()
    processes: int = 1
    modules: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A run on own data.

    Attributes:
        description: of the data.
        summaries: of what is in each split.
        base: config file that the settings differ from.
        reason: for this one.
        cfg: complete, frozen.
        settings: what was derived, and what the user gave.
        seconds: that training may take without evaluation; None where no step was measured.
    """

    description: DataDescription | DataMixture
    summaries: Mapping[str, DataSummary]
    base: Path
    reason: str
    cfg: CfgNode
    settings: tuple[Setting, ...]
    seconds: float | None

    def table(self) -> str:
        """Data, settings with their reasons, and time."""
        rows = [("_BASE_", self.base.stem, self.reason)]
        rows += [(setting.key, _brief(setting.value), setting.reason) for setting in self.settings]
        rows = [(key, textwrap.fill(value, 40), textwrap.fill(reason, 72)) for key, value, reason in rows]
        parts = [
            self.description.table(self.summaries),
            tabulate(rows, headers=["setting", "value", "because"], disable_numparse=True),
        ]
        if self.seconds is not None:
            parts.append(
                f"Training takes {_duration(self.seconds)} on this machine if every image is as full as the fullest, "
                "less otherwise; --epochs sets how long."
            )
        return "\n\n".join(parts)

    def write(self) -> Path:
        """Write `data.yaml` and `config.yaml` into OUTPUT_DIR, and return the path of the latter.

        An older file that differs is kept, as `data.yaml.old`, or `.old2` and so on.
        """
        folder = Path(self.cfg.OUTPUT_DIR)
        original = get_cfg()
        merge_config_file(original, self.base)
        reasons = {setting.key: setting.reason for setting in self.settings}
        values = {key: derive.get_key(self.cfg, key) for key in reasons}
        changed = {key: value for key, value in values.items() if not _same(value, derive.get_key(original, key))}
        lines = _yaml_lines(_nested({key: (value, reasons[key]) for key, value in changed.items()}))
        base = _flow(str(self.base.resolve()))
        with _keeping_old(folder / DATA_FILE):
            self.description.to_yaml(folder / DATA_FILE)
        with _keeping_old(folder / CONFIG_FILE):
            write_text(folder / CONFIG_FILE, "\n".join([f"{HEADER}_BASE_: {base}", *lines, ""]))
        return folder / CONFIG_FILE


def plan(request: Request, *, probe: bool = True) -> Plan:
    """Describe the data, choose the model, derive the settings. Writes nothing.

    Args:
        probe: measure how many images fit into memory, unless SOLVER.IMS_PER_BATCH is given.

    Raises:
        DataError, FileNotFoundError, KeyError, ValueError: data, model or settings are wrong; the text says the fix.
        MemoryError: not a single image fits.
    """
    sources = [request.data] if isinstance(request.data, str) else request.data
    description = describe_all(sources, request.task)
    names = description.register()
    summaries = description.summarise()
    train, validation = summaries["train"], summaries.get("val")
    choice = _choose(request, description.task)
    cfg = get_cfg()
    merge_config_file(cfg, choice.config_file)
    recipe = Recipe.from_config(cfg)
    given = _given(choice.config_file, request)
    settings = _take(cfg, _fixed_settings(request, description, names, choice), given)
    merge_key_values(cfg, request.opts)
    conditions = Conditions(
        recipe=recipe,
        on_gpu=torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu",
        pretrained=bool(cfg.MODEL.WEIGHTS),
        processors=os.cpu_count() or 1,
        epochs=request.epochs,
    )
    rules = (derive.task_settings, derive.size_settings, derive.query_settings, derive.worker_settings)
    settings += derive.derive(cfg, train, conditions, rules, given)

    seconds = None
    if BATCH not in given:
        fit = _fit(cfg, train, request, probe=probe)
        settings += _take(cfg, [Setting(BATCH, fit.batch, fit.reason)], given)
        seconds = fit.seconds
    settings += derive.derive(cfg, train, conditions, [derive.rate_settings, derive.length_settings], given)
    settings += _take(cfg, derive.evaluation_settings(cfg, train, validation), given)
    settings += [Setting(key, derive.get_key(cfg, key), "given") for key in request.opts[::2]]
    cfg.freeze()
    total = None if seconds is None else seconds * cfg.SOLVER.MAX_ITER
    return Plan(description, summaries, choice.config_file, choice.reason, cfg, tuple(settings), total)


def _choose(request: Request, task: str) -> ModelChoice:
    choice = choose_model(
        task,
        request.model,
        weights=request.weights,
        from_scratch=request.from_scratch,
        on_gpu=torch.cuda.is_available(),
    )
    if choice.config_file.resolve() == Path(request.output, CONFIG_FILE).resolve():
        raise ValueError(
            f"--model {choice.config_file} is what this run would write: give another --output, or train with "
            f"--config-file {choice.config_file} as it is"
        )
    return choice


def _fixed_settings(
    request: Request,
    description: DataDescription | DataMixture,
    names: Mapping[str, Sequence[str]],
    choice: ModelChoice,
) -> Iterable[Setting]:
    """What does not depend on what the images hold."""
    yield Setting("OUTPUT_DIR", request.output, "folder of the run")
    yield Setting("DATASETS.DESCRIPTIONS", [str(Path(request.output, DATA_FILE))], "the data, as described above")
    yield Setting("DATASETS.TRAIN", list(names["train"]), "split of the data")
    yield Setting("DATASETS.TEST", list(names.get("val", ())), "split of the data")
    ratios = list(description.ratios) if isinstance(description, DataMixture) else []
    if ratios or not shipped_name(choice.config_file):  # whose own ratios are of other data
        yield Setting("DATASETS.RATIOS", ratios, "of the data sets" if ratios else "none are given")
    yield Setting("MODEL.WEIGHTS", choice.weights, choice.origin)
    weights = description.class_weights
    if weights:
        values = [weights.get(name, 1.0) for name in description.classes]
        yield Setting("MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS", values, "class_weights of the data")
    yield Setting("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", description.ignore_label, "label of pixels of no class")


def _take(cfg: CfgNode, settings: Iterable[Setting], given: Collection[str]) -> list[Setting]:
    """Let `cfg` take up settings but for the given keys; returns those taken."""
    taken = [setting for setting in settings if setting.key not in given]
    for setting in taken:
        derive.set_key(cfg, setting.key, setting.value)
    return taken


def _given(config_file: Path, request: Request) -> set[str]:
    """The keys that the user has set: on the command line, or in a config file that is not the package's.

    Of the latter not what the data and the other arguments say.
    """
    own = {} if shipped_name(config_file) else parse_yaml(config_file.read_text(encoding="utf-8"), str(config_file))
    said = {*SAID_BY_DATA}
    if request.weights or request.from_scratch:
        said.add("MODEL.WEIGHTS")
    if request.epochs is not None:
        said |= {
            "SOLVER.MAX_ITER",
            "SOLVER.STEPS",
            "SOLVER.WARMUP_ITERS",
            "TEST.EVAL_PERIOD",
            "SOLVER.CHECKPOINT_PERIOD",
        }
    return {*request.opts[::2], *(flat_settings(own).keys() - said)}


def _fit(cfg: CfgNode, data: DataSummary, request: Request, *, probe: bool) -> Fit:
    """The batch of all processes and parts that a step is taken in."""
    shares = request.processes * cfg.SOLVER.ACCUMULATION_STEPS
    limit = derive.batch_limit(cfg, data, shares)
    if not probe:
        return Fit(limit, "not measured", None)
    cfg = use_available_device(cfg)
    worst = Worst(*derive.crop_size(cfg, data), data.most[0])
    fit = largest_batch(cfg, worst, limit // shares, modules=request.modules)
    seconds = None if fit.seconds is None else fit.seconds * cfg.SOLVER.ACCUMULATION_STEPS
    return Fit(fit.batch * shares, fit.reason, seconds)


@contextmanager
def _keeping_old(path: Path) -> Iterator[None]:
    """Keep what a file says, as `.old` and so on, if it says something else afterwards."""
    old = path.read_bytes() if path.is_file() else None
    yield
    if old is not None and path.read_bytes() != old:
        kept = free_old_name(path)
        write_bytes(kept, old)
        logger.warning("%s has changed; what it said is in %s", path, kept.name)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _yaml_lines(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """YAML of (value, reason) by key, the reason as a comment."""
    for key, entry in tree.items():
        if isinstance(entry, dict):
            yield f"{indent}{key}:"
            yield from _yaml_lines(entry, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_flow(entry[0])}  # {entry[1]}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a config mean the same; lists and tuples of it may replace each other."""
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return list(value) == list(other)
    return bool(value == other)


def _brief(value: Any) -> str:
    text = str(value) if value != "" else "''"
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
