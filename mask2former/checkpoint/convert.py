"""Bringing the names in weights files of different origins to those of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

# Left in front of names by DistributedDataParallel and torch.compile.
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")

# torchvision's ResNet to Detectron2's.
_TORCHVISION = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)


class Converted(NamedTuple):
    """Weights under the names of a model."""

    weights: dict[str, Tensor]
    renamed: dict[str, str]
    """The names that changed: in the file → now."""


def convert_names(weights: Mapping[str, Tensor], model_names: Collection[str]) -> Converted:
    """Rename weights to fit a model.

    Handles wrappers around the model, torchvision's ResNets, `static_query` of old published checkpoints, and files
    that hold one part of the model only, such as a backbone: these are placed where most of their names are found.
    Names that fit nowhere stay, so that the caller can report them.
    """
    names = {name: name for name in weights}
    if all(_WRAPPERS.match(name) for name in names):
        names = {name: _WRAPPERS.sub("", name, count=1) for name in names}
    if "layer1.0.conv1.weight" in names.values():
        names = {old: _from_torchvision(new) for old, new in names.items()}
    names = {old: _query_features(new, model_names) for old, new in names.items()}
    prefix = _place(names.values(), model_names)
    names = {old: prefix + new for old, new in names.items()}
    return Converted(
        weights={new: weights[old] for old, new in names.items()},
        renamed={old: new for old, new in names.items() if old != new},
    )


def _from_torchvision(name: str) -> str:
    for pattern, replacement in _TORCHVISION:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)


def _query_features(name: str, model_names: Collection[str]) -> str:
    """Rename the query features of published checkpoints before version 2 of the decoder."""
    return name if name in model_names else name.replace("static_query", "query_feat")


def _place(names: Iterable[str], model_names: Collection[str]) -> str:
    """Return the prefix under which most of `names` are names of the model; "" if it is as good as any."""
    names = set(names)
    found: Counter[str] = Counter()
    for model_name in model_names:
        parts = model_name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                found["".join(part + "." for part in parts[:start])] += 1
    return max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")
