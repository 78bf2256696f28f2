"""Loading weights into a model that may differ from the one they were made with, and saying what happened."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate
from torch import Tensor, nn

from mask2former.checkpoint.backbones import is_backbone_surplus
from mask2former.checkpoint.class_rows import ClassRows, known_classes, match_classes
from mask2former.checkpoint.convert import convert_names
from mask2former.checkpoint.errors import CheckpointError
from mask2former.checkpoint.reader import read_checkpoint

logger = logging.getLogger(__name__)

# Follow from the model's own configuration, or from its classes; what a file says about them is left aside.
OWN = ("criterion.empty_weight", "pixel_mean", "pixel_std", "relative_position_index")
# Counts that nothing depends on: taken along, but not missed.
UNTOLD = ("num_batches_tracked",)
# One row for each class: begin anew when their number differs, but for classes of the same name.
CLASS_HEADS = ("class_embed.weight", "class_embed.bias", "predictor.weight", "predictor.bias")
# One row for each query: those that both have are kept.
QUERIES = ("query_feat.weight", "query_embed.weight")
# The modules that hold these resize them while loading.
POSITIONS = ("relative_position_bias_table", "absolute_pos_embed")
EXAMPLES = 5
BACKBONE = "backbone."
AVERAGE = "ema_state"
"""What a checkpoint has beside "model" if the average of the weights was kept; named as in D2Go."""
THRESHOLDS, THRESHOLDS_OF_AVERAGE = "score_thresholds", "ema_score_thresholds"
"""Where a checkpoint has the scores from which predictions count: those that its weights make, and their average."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor of a file and of a model, by name."""

    path: str
    loaded: tuple[str, ...]
    """Taken from the file, whole or resized."""
    renamed: dict[str, str]
    """Name in the file → name in the model, where they differ."""
    resized: tuple[str, ...]
    """Of another size in the file: positions are interpolated, queries cut or completed."""
    reinitialised: tuple[str, ...]
    """Class heads for another number of classes: they keep the model's initial values."""
    missing: tuple[str, ...]
    """In the model only; they keep their initial values."""
    skipped: tuple[str, ...]
    """In the file only."""
    categories: tuple[dict[str, Any], ...] = ()
    """The classes that the weights were trained on, as in MODEL.CATEGORIES; empty where the file does not say."""
    class_rows: ClassRows | None = None
    """What became of each class's rows, where the classes of file and model are known and differ."""
    score_thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    """Scores of highest F1 of instances, by data set and class; empty where the file does not say."""

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model and of the file was used, as it is."""
        return not (self.resized or self.reinitialised or self.missing or self.skipped or self.class_rows)

    @property
    def backbone_only(self) -> bool:
        """Whether the file was a pretrained backbone, whole, perhaps with its classifier.

        A backbone's norms of single feature maps (`norm0`, ... of Swin) are not part of pretraining.
        """
        backbone = [name for name in self.missing if name.startswith(BACKBONE)]
        return (
            all(name.startswith(BACKBONE) for name in self.loaded)
            and len(backbone) < len(self.missing)
            and all(name.removeprefix(BACKBONE).startswith("norm") for name in backbone)
            and all(is_backbone_surplus(name.removeprefix(BACKBONE)) for name in self.skipped)
            and not self.reinitialised
            and not self.class_rows
        )

    @property
    def completes_model(self) -> bool:
        """Whether nothing in the model keeps an initial value."""
        return not (self.resized or self.reinitialised or self.missing)

    def table(self) -> str:
        """Return a table with the count of each outcome, and the parts of the model concerned."""
        renamed = set(self.renamed.values())
        rows = [
            ("loaded", len(self.loaded), _parts(self.loaded)),
            ("of these renamed", len(renamed), _parts(renamed)),
            ("of these resized", len(self.resized), ", ".join(self.resized[:EXAMPLES])),
            ("re-initialised (classes differ)", len(self.reinitialised), ", ".join(self.reinitialised)),
            ("missing in the file", len(self.missing), _parts(self.missing)),
            ("skipped (not in the model)", len(self.skipped), _parts(self.skipped)),
        ]
        text = tabulate([row for row in rows if row[1]], headers=["weights", "tensors", "where"])
        return text if self.class_rows is None else f"{text}\n{self.class_rows.text()}"

    def log(self) -> None:
        """Log a line if all is as it should be, else the table; as a warning if the model keeps initial values."""
        if self.complete:
            logger.info("Weights from %s: all %d tensors loaded", self.path, len(self.loaded))
        elif self.backbone_only:
            others = sorted({name.partition(".")[0] for name in self.missing} - {BACKBONE[:-1]})
            logger.info(
                "Weights from %s: backbone loaded (%d tensors); %s trained from scratch",
                self.path,
                len(self.loaded),
                ", ".join(others),
            )
        else:
            new_classes = self.class_rows is not None and self.class_rows.new
            usual = not (self.reinitialised or self.missing or self.skipped or new_classes)
            level = logging.INFO if usual else logging.WARNING
            logger.log(level, "Weights from %s:\n%s", self.path, self.table())


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    complete: bool = False,
    strict: bool = False,
    averaged: bool = False,
    categories: Sequence[Mapping[str, Any]] = (),
) -> LoadReport:
    """Load weights from `path` (see `read_checkpoint`) into `model`, as far as they fit, and log a report.

    Names are converted (see `convert_names`). With another number of classes the class head begins anew, but for
    classes whose names the file has too and for "no object"; with another number of queries the common ones are kept;
    Swin's position tables are resized.

    Args:
        model: a model, or a part such as a backbone.
        path: path or address of a file, or a folder of transformers.
        complete: the file must have every tensor of the model, in its size; it may hold more.
        strict: allow no difference; what `convert_names` renames is none.
        averaged: load the running average of the weights, which a training checkpoint may have beside them.
        categories: the classes of the model, as in MODEL.CATEGORIES, to be looked for in the file by their names;
            without them rows are taken by their number.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file cannot be read, belongs to another architecture (less than half of some part of
            the model that the file has weights for is found in it), has a tensor of another shape, or is not what
            `complete` or `strict` ask for.
    """
    if complete and not os.fspath(path):
        raise CheckpointError("MODEL.WEIGHTS is empty: the model would guess with random weights. Name their file.")
    own = {name: value for name, value in model.state_dict().items() if not name.endswith(OWN)}
    content = read_checkpoint(path)
    if averaged and AVERAGE not in content:
        raise CheckpointError(
            f"{path} holds no average of weights: MODEL_EMA.ENABLED was off when it was trained. Set "
            "MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY False to use the weights themselves."
        )
    converted = convert_names(content[AVERAGE if averaged else "model"], own.keys())
    weights = {name: value for name, value in converted.weights.items() if not name.endswith(OWN)}
    common = {name: weights[name] for name in own if name in weights}
    _check_architecture(own.keys(), common.keys(), weights.keys(), path)

    trained_on = known_classes(path, content)
    rows = match_classes(trained_on, categories)
    common, rows = _fit_classes(common, own, rows)
    common, resized, reinitialised = _fit_shapes(common, own, path)
    report = LoadReport(
        path=os.fspath(path),
        loaded=tuple(common),
        renamed={old: new for old, new in converted.renamed.items() if new in common},
        resized=tuple(sorted(resized)),
        reinitialised=tuple(sorted(reinitialised)),
        missing=tuple(name for name in own if name not in weights and not name.endswith(UNTOLD)),
        skipped=tuple(name for name in weights if name not in own and not name.endswith(UNTOLD)),
        categories=tuple(trained_on),
        class_rows=rows,
        score_thresholds=dict(content.get(THRESHOLDS_OF_AVERAGE if averaged else THRESHOLDS, {})),
    )
    if strict and not report.complete:
        raise CheckpointError(f"{path} does not fit the model exactly:\n{report.table()}")
    if complete and not report.completes_model:
        raise CheckpointError(
            f"{path} does not complete the model, a part of which would have random weights:\n{report.table()}\n"
            "Use the config that the weights were trained with (config.yaml beside them), or another file."
        )
    try:
        model.load_state_dict(common, strict=False)
    except RuntimeError as error:  # a position table that its module cannot resize
        raise CheckpointError(f"{path} does not fit the model: {error}") from error
    report.log()
    return report


def _fit_classes(
    stored: dict[str, Tensor], own: dict[str, Tensor], rows: ClassRows | None
) -> tuple[dict[str, Tensor], ClassRows | None]:
    """Return weights whose class heads have the rows of the model's classes, and the rows if any head has them."""
    heads = [name for name in stored if name.endswith(CLASS_HEADS) and rows and rows.fit(stored[name], own[name])]
    if rows is None or not heads:
        return stored, None
    return stored | {name: rows.fill(stored[name], own[name]) for name in heads}, rows


def _fit_shapes(
    stored: dict[str, Tensor], own: dict[str, Tensor], path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], set[str], set[str]]:
    """Return what to load, and the names of what is resized and of what is left out to begin anew."""
    differing = {name for name, value in stored.items() if value.shape != own[name].shape}
    reinitialised = {name for name in differing if _same_rows(name, CLASS_HEADS, stored[name], own[name])}
    queries = {name for name in differing if _same_rows(name, QUERIES, stored[name], own[name])}
    positions = {name for name in differing if name.endswith(POSITIONS)}
    wrong = differing - reinitialised - queries - positions
    if wrong:
        raise CheckpointError(f"{path} does not fit the model: {_shapes(wrong, stored, own)}")
    fitting = {name: value for name, value in stored.items() if name not in reinitialised}
    fitting |= {name: _complete_rows(stored[name], own[name]) for name in queries}
    return fitting, queries | positions, reinitialised


def _check_architecture(
    model: Collection[str], common: Collection[str], file: Collection[str], path: str | os.PathLike[str]
) -> None:
    """Refuse a file in which less than half of a part of the model (its backbone, its head) is found."""
    in_model, in_common = (Counter(name.partition(".")[0] for name in names) for names in (model, common))
    in_file = {name.partition(".")[0] for name in file}
    foreign = [part for part in in_model if part in in_file and 2 * in_common[part] < in_model[part]]
    if foreign or not in_common:
        only_model = sorted(set(model) - set(common))
        only_file = sorted(set(file) - set(common))
        raise CheckpointError(
            f"{path} belongs to another architecture"
            f"{f' ({foreign[0]})' if foreign else ''}: "
            f"the model has {', '.join(_examples(only_model, foreign))}, ...; "
            f"the file has {', '.join(_examples(only_file, foreign))}, ..."
        )


def _examples(names: list[str], parts: list[str]) -> list[str]:
    """Return some names from all over the list, of the given parts if there are any."""
    shown = [name for name in names if name.partition(".")[0] in parts] or names
    return shown[:: -(-len(shown) // EXAMPLES) or 1]


def _same_rows(name: str, endings: tuple[str, ...], ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether two tensors of this kind differ in the number of rows alone."""
    return name.endswith(endings) and ours.shape[1:] == theirs.shape[1:]


def _complete_rows(stored: Tensor, initial: Tensor) -> Tensor:
    """Return `initial` (n, C) with its first rows replaced by those of `stored` (m, C)."""
    completed = initial.detach().clone()
    count = min(len(stored), len(initial))
    completed[:count] = stored[:count]
    return completed


def _shapes(names: Iterable[str], stored: dict[str, Tensor], own: dict[str, Tensor]) -> str:
    listed = sorted(names)
    text = "; ".join(
        f"{name} is {tuple(stored[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in listed[:EXAMPLES]
    )
    return text + (f"; and {len(listed) - EXAMPLES} more" if len(listed) > EXAMPLES else "")


def _parts(names: Iterable[str]) -> str:
    """Return the parts of the model that hold the names, two levels deep, with counts."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    shown = [f"{part} ({count})" for part, count in counts.most_common(EXAMPLES)]
    return ", ".join(shown) + (", ..." if len(counts) > EXAMPLES else "")
