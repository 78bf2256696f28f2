"""Where a predictor's model comes from: a config, a checkpoint, a published model, a folder, an exported file."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from mask2former.checkpoint import check_config, checkpoint_config, load_weights
from mask2former.checkpoint.description import SWITCHES, task_of
from mask2former.checkpoint.published import ZOO, published_models, suggest_model
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.data.datasets.metadata import dataset_metadata, metadata_of
from mask2former.evaluation.instance import DEFAULT_THRESHOLD

logger = logging.getLogger(__name__)

EXPORTED: dict[str, str] = dict.fromkeys((".onnx", ".pt2", ".xml"), "mask2former.predict.exported")
"""Suffix of exported files → module that reads them: an `ExportedFormat`."""


class Segmenter(Protocol):
    """What maps prepared images to outputs: a model in evaluation, or an exported file."""

    def __call__(self, batch: Sequence[dict[str, Any]], /) -> list[dict[str, Any]]:
        """Segment.

        Args:
            batch: for each image `image`, a tensor uint8 (3, h, w) in the order of INPUT.FORMAT, resized as the config
                says, and `height` and `width` of the wanted output. All images of a batch have one size.

        Returns:
            For each image the outputs that the config turns on, as `MaskFormer.forward` gives them.
        """


@dataclass(frozen=True)
class Loaded:
    """A segmenter, and what is known of its classes."""

    segmenter: Segmenter
    metadata: Metadata
    score_thresholds: Sequence[float] = ()
    """For each class the score of highest F1, from the last evaluation; nothing if it is not known."""


class ExportedFormat(Protocol):
    """A module for one kind of exported files."""

    def read_config(self, path: Path) -> CfgNode:
        """The complete config in a file, with MODEL.CATEGORIES; raises CheckpointError or OSError."""

    def load(self, cfg: CfgNode) -> Loaded:
        """Load MODEL.WEIGHTS, to make the outputs that MODEL.MASK_FORMER.TEST turns on, with its settings."""


def source_config(source: str | os.PathLike[str]) -> CfgNode:
    """The complete config of a source that is named; MODEL.WEIGHTS is where its weights are.

    Args:
        source: what `checkpoint_config` takes, an exported file, or the name of a published model.

    Raises:
        FileNotFoundError: there is nothing of that name.
        CheckpointError: it cannot be read, or does not say which model it belongs to.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    name = Path(text).as_posix().removeprefix("configs/").removesuffix(".yaml")
    if "://" not in text and not path.exists():
        if name not in published_models():
            hint = suggest_model(name, published_models())
            raise FileNotFoundError(f"{text} is neither a file nor a folder, nor a published model{hint}")
        text = f"{ZOO}{name}"
    exported = _exported_format(text)
    if exported is not None:
        cfg = exported.read_config(path)
        cfg.MODEL.WEIGHTS = text
        return cfg
    return checkpoint_config(text)


def load(cfg: CfgNode, *, allow_missing_weights: bool = False) -> Loaded:
    """Load MODEL.WEIGHTS of a config that may be changed.

    Raises:
        FileNotFoundError: there are none.
        CheckpointError: they do not fill the model, and `allow_missing_weights` is off.
    """
    exported = _exported_format(cfg.MODEL.WEIGHTS)
    return exported.load(cfg) if exported is not None else _load_model(cfg, allow_missing_weights)


def with_task(cfg: CfgNode, task: str) -> CfgNode:
    """A copy of a config that makes one output alone, of the task, or with "auto" of the one that tells most.

    Raises:
        ValueError: there is no such task.
    """
    if task not in ("auto", *SWITCHES):
        raise ValueError(f"task must be auto, {', '.join(SWITCHES)}, not {task!r}")
    cfg = cfg.clone()
    cfg.defrost()
    wanted = task_of(cfg) if task == "auto" else task
    for name, key in SWITCHES.items():
        cfg.MODEL.MASK_FORMER.TEST[key] = name == wanted
    return cfg


def _exported_format(weights: str) -> ExportedFormat | None:
    module: Any = EXPORTED.get(Path(weights).suffix.lower())
    return None if module is None else import_module(module)  # type: ignore[return-value]  # a module is its protocol


def _load_model(cfg: CfgNode, allow_missing_weights: bool) -> Loaded:
    categories = list(cfg.MODEL.CATEGORIES)
    metadata = Metadata()
    if not categories:
        for name in cfg.DATASETS.TRAIN[:1]:  # from whose metadata the model knows the things
            _complete_metadata(name)
        metadata = _complete_metadata(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unnamed__")
    model = build_model(cfg).eval()
    thresholds: list[float] = []
    if cfg.MODEL.WEIGHTS or not allow_missing_weights:
        if cfg.MODEL.WEIGHTS and Path(cfg.MODEL.WEIGHTS).expanduser().is_dir():
            check_config(cfg, cfg.MODEL.WEIGHTS)
        report = load_weights(
            model,
            cfg.MODEL.WEIGHTS,
            complete=not allow_missing_weights,
            averaged=cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY,
        )
        categories = categories or list(report.categories)
        thresholds = score_thresholds(report.score_thresholds, categories)
    else:
        logger.warning("MODEL.WEIGHTS is empty: this predictor has random weights")
    if categories:
        metadata = metadata_of(categories)
        if hasattr(model, "metadata"):
            setattr(model, "metadata", metadata)  # noqa: B010, from which it knows the things
    return Loaded(model, metadata, thresholds)


def score_thresholds(known: Mapping[str, Mapping[str, float]], categories: Sequence[Mapping[str, Any]]) -> list[float]:
    """The score of highest F1 of each class, on the first data set that has some; nothing where none has."""
    of_class = next((scores for scores in known.values() if scores), None)
    if of_class is None:
        return []
    return [of_class.get(category["name"], DEFAULT_THRESHOLD) for category in categories]


def _complete_metadata(name: str) -> Metadata:
    """Metadata of a data set. Of one that is not registered, what the caller has set, if anything."""
    return dataset_metadata(name) if name in DatasetCatalog else MetadataCatalog.get(name)
