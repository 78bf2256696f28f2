"""Weights of the published modules' first version: how their names became the present ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn


def present_name(name: str, known: Collection[str]) -> str:
    """Return what `name` of version 1 is called among the `known` names; itself if it is known or nowhere found.

    `static_query` became `query_feat`, and the pixel decoder's weights lay in the head itself.
    """
    if name in known:
        return name
    parts = name.split(".")
    moved = (".".join([*parts[:i], "pixel_decoder", *parts[i:]]) for i in range(len(parts)))
    return next((new for new in (name.replace("static_query", "query_feat"), *moved) if new in known), name)


def load_version_1(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *_: Any
) -> None:
    """Rename weights that `module`, of version 2, is given to load; for `register_load_state_dict_pre_hook`.

    Files without metadata, as published ones are, may be of either version.
    """
    if (local_metadata.get("version") or 1) >= 2:
        return
    known = {prefix + name for name in module.state_dict()}
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[present_name(name, known)] = state_dict.pop(name)
