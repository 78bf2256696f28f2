"""What a checkpoint says of its model beside the weights, so that no other file is needed to use it.

Plain text and numbers, under these keys:

- `version`: of this package, which wrote it;
- `task`: `panoptic`, `instance` or `semantic`;
- `config_yaml`: the complete config, with the settings of images and of each task;
- `categories`: the classes in the order of the output, as in MODEL.CATEGORIES: name, colour, thing or stuff.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mask2former.checkpoint.errors import CheckpointError
from mask2former.config import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import merge_config_text
from mask2former.version import __version__

SWITCHES = {"panoptic": "PANOPTIC_ON", "instance": "INSTANCE_ON", "semantic": "SEMANTIC_ON"}
"""Key of MODEL.MASK_FORMER.TEST that turns the output of a task on; the task that tells most comes first."""


def task_of(cfg: CfgNode) -> str:
    """The task that a config's model is for: the first of panoptic, instance and semantic that is turned on."""
    return next((task for task, key in SWITCHES.items() if cfg.MODEL.MASK_FORMER.TEST[key]), "semantic")


def describe(cfg: CfgNode) -> dict[str, Any]:
    """The description of a config's model."""
    return {
        "version": __version__,
        "task": task_of(cfg),
        "config_yaml": cfg.dump(),
        "categories": [dict(category) for category in cfg.MODEL.CATEGORIES],
    }


def config_of(description: Mapping[str, Any], source: object) -> CfgNode | None:
    """The complete config in a description, with its classes; None if it has none.

    Args:
        source: where the description is from, for messages.

    Raises:
        CheckpointError: the config cannot be read or holds settings that this version does not take.
    """
    if "config_yaml" not in description:
        return None
    cfg = get_cfg()
    try:
        merge_config_text(cfg, description["config_yaml"], f"the config in {source}")
        if description.get("categories"):
            cfg.MODEL.CATEGORIES = [dict(category) for category in description["categories"]]
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        version = description.get("version", "unknown")
        raise CheckpointError(
            f"{source} holds a config that cannot be used: {error.args[0] if error.args else error} (written by "
            f"version {version}, this is {__version__}). Name a config file too"
        ) from error
    return cfg
