"""What a run has left in its folder, read for the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask2former.config import get_cfg
from mask2former.d2.config_file import flat_settings, load_config_file
from mask2former.evaluation.details import Details, read_details
from mask2former.evaluation.pictures import FOLDER
from mask2former.visualization import metric_curves

UNTOLD = ("MODEL.CATEGORIES",)
"""Settings that are no choice of anybody."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The last evaluation of one data set: its folder, the details by task, and the pictures that were drawn."""

    title: str
    folder: Path
    details: list[Details]
    pictures: list[Path]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run has left.

    Attributes:
        folder: its OUTPUT_DIR.
        settings: what differs from the defaults, (value, default) by key; the default of an unknown key is None.
        curves: (iteration, value) of each metric.
        evaluated: by data set.
    """

    folder: Path
    settings: dict[str, tuple[Any, Any]]
    curves: dict[str, list[tuple[int, float]]]
    evaluated: list[Evaluated]


def read_run(folder: Path) -> Run:
    """Read the files of a run; what is missing is left out.

    Raises:
        FileNotFoundError: the folder is not one of a run.
        ValueError: `config.yaml` is no plain YAML.
    """
    config, metrics = folder / "config.yaml", folder / "metrics.json"
    if not config.is_file():
        raise FileNotFoundError(f"{config} does not exist: a report is about the OUTPUT_DIR of a training")
    return Run(
        folder=folder,
        settings=_changed(load_config_file(config)),
        curves=metric_curves(metrics) if metrics.is_file() else {},
        evaluated=[_evaluated(path) for path in sorted(folder.glob("inference*/*")) if path.is_dir()],
    )


def _evaluated(folder: Path) -> Evaluated:
    what = folder.parent.name.removeprefix("inference").strip("_")  # such as EMA, TTA
    return Evaluated(
        title=f"{folder.name} ({what})" if what else folder.name,
        folder=folder,
        details=list(read_details(folder)),
        pictures=_last_pictures(folder / FOLDER),
    )


def _last_pictures(folder: Path) -> list[Path]:
    """Those of the last iteration that has some, else those of an evaluation outside of a training."""
    iterations = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    return sorted((iterations[-1] if iterations else folder).glob("*.jpg"))


def _changed(settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    default = flat_settings(get_cfg())
    now = flat_settings(settings)
    return {
        key: (value, default.get(key))
        for key, value in now.items()
        if key not in UNTOLD and (key not in default or _plain(value) != _plain(default[key]))
    }


def _plain(value: Any) -> Any:
    """YAML knows lists alone and writes a name in brackets as text."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
