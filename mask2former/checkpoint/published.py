"""The published models: what they are, how good, and where their checkpoints are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("published.json")
ZOO = "zoo://"
"""What the name of a published model follows where it stands for its weights."""
_HOST = "https://dl.fbaipublicfiles.com/maskformer/mask2former/"


@dataclass(frozen=True)
class PublishedModel:
    """A row of the model zoo."""

    dataset: str
    task: str
    """panoptic, instance or semantic."""
    backbone: str
    schedule: str
    metrics: dict[str, float]
    """In percent, as published; none is measured by this project."""
    checkpoint: str
    """Web address."""
    gflops: float | None = None
    """Of a forward pass, 10^9 multiply-adds, measured with `mask2former analyze`."""
    paper_gflops: float | None = None
    """The same as the paper gives it."""


@cache
def published_models() -> dict[str, PublishedModel]:
    """All published models by name, which is that of their config file."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {name: PublishedModel(**row | {"checkpoint": _HOST + row["checkpoint"]}) for name, row in table.items()}


def get_checkpoint_url(name: str) -> str:
    """Return the web address of a published model's checkpoint.

    Args:
        name: such as `coco/panoptic-segmentation/maskformer2_R50_bs16_50ep`, with or without `.yaml`.

    Raises:
        KeyError: if there is no such model; the text names similar ones.
    """
    return find_published(name)[1].checkpoint


def find_published(name: str) -> tuple[str, PublishedModel]:
    """Return a published model and its name; the given one may begin with zoo:// and end with .yaml.

    Raises:
        KeyError: if there is no such model; the text names similar ones.
    """
    models = published_models()
    name = name.removeprefix(ZOO).removesuffix(".yaml")
    if name not in models:
        raise KeyError(f"no published model is named '{name}'{suggest_model(name, models)}")
    return name, models[name]


def published_name(weights: str) -> str:
    """The published model of `zoo://` and its name, of its address, or of a file named as published; "" if none."""
    models = published_models()
    if weights.startswith(ZOO):
        name = weights.removeprefix(ZOO).removesuffix(".yaml")
        return name if name in models else ""
    file = Path(weights).name
    return next((name for name, model in models.items() if model.checkpoint.endswith(f"/{file}")), "")


def suggest_model(name: str, known: Iterable[str]) -> str:
    """Return suggestions for a misspelt name of a model: names that end like it, and like ones."""
    from mask2former.similar import did_you_mean  # `mask2former zoo` reads this file without the library

    names = sorted(known)
    return did_you_mean(name, names, first=[other for other in names if other.endswith(f"/{name.rpartition('/')[2]}")])
