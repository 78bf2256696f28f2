"""Configs by name: those that the package carries."""

from __future__ import annotations

import os
from pathlib import Path

from mask2former.checkpoint.published import get_checkpoint_url, suggest_model
from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import merge_config_file

# An installed package carries the configs inside, see setup.py; a checkout has them beside the package.
_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


def get_config_file(name: str) -> Path:
    """Return where the config file `name` lies, with or without `.yaml`.

    Raises:
        KeyError: if there is none; the text names similar ones.
    """
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no folder of configs at {' or '.join(map(str, _FOLDERS))}")
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    name = name.removesuffix(".yaml")
    if name not in files:
        raise KeyError(f"no config is named '{name}'{suggest_model(name, files)}")
    return files[name]


def shipped_name(path: Path) -> str:
    """Return the name of a config file that the package carries; "" for any other file."""
    resolved = path.resolve()
    folder = next((folder.resolve() for folder in _FOLDERS if folder.resolve() in resolved.parents), None)
    return "" if folder is None else resolved.relative_to(folder).with_suffix("").as_posix()


def find_config_file(text: str | os.PathLike[str]) -> Path:
    """Return the path of a config that a user names: a file, or one of the model zoo, with or without `configs/`.

    Raises:
        FileNotFoundError: if it is neither.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return path
    try:
        return get_config_file(path.as_posix().removeprefix("configs/"))
    except KeyError as error:
        raise FileNotFoundError(f"Config file '{path}' does not exist, and {error.args[0]}.") from None


def get_config(name: str, *, trained: bool = False) -> CfgNode:
    """Return the complete configuration of a model.

    Args:
        name: of a config file, see `get_config_file`.
        trained: let MODEL.WEIGHTS be the published checkpoint instead of what training starts from.

    Raises:
        KeyError: if there is no such config, or no checkpoint is published for it.
    """
    cfg = get_cfg()
    merge_config_file(cfg, get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg
