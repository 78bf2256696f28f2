"""Bringing the names in weights files of different origins to those of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from mask2former.checkpoint.backbones import backbone_kind, backbone_renaming
from mask2former.checkpoint.transformers import from_transformers, is_transformers
from mask2former.modeling.version_1 import present_name

# Left in front of names by DistributedDataParallel and torch.compile.
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")


class Converted(NamedTuple):
    """Weights under the names of a model."""

    weights: dict[str, Tensor]
    renamed: dict[str, str]
    """The names that changed: in the file → now."""


def convert_names(weights: Mapping[str, Tensor], model_names: Collection[str]) -> Converted:
    """Rename weights to fit a model.

    Handles wrappers around the model, pretrained backbones of other origins, models of transformers, published
    checkpoints of version 1, and files that hold one part of the model only, such as a backbone: these are placed
    where most of their names are found. Names that fit nowhere stay, so that the caller can report them.
    """
    names = {name: name for name in weights}
    if all(_WRAPPERS.match(name) for name in names):
        names = {name: _WRAPPERS.sub("", name, count=1) for name in names}
    if is_transformers(names.values()):
        return Converted(*from_transformers({new: weights[old] for old, new in names.items()}))
    kind = backbone_kind(set(names.values()))
    if kind is not None:
        rename = backbone_renaming(set(names.values()), kind)
        names = {old: rename(new) for old, new in names.items()}
    prefix = _place(names.values(), model_names)
    model_names = set(model_names)
    names = {old: present_name(prefix + new, model_names) for old, new in names.items()}
    return Converted(
        weights={new: weights[old] for old, new in names.items()},
        renamed={old: new for old, new in names.items() if old != new},
    )


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
