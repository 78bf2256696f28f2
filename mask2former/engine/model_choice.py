"""Which model learns own data, and which weights it starts from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mask2former.checkpoint.configs import find_config_file, shipped_name
from mask2former.checkpoint.download import ZOO, local_path
from mask2former.checkpoint.published import published_models
from mask2former.d2.config_file import load_config_file
from mask2former.similar import did_you_mean

DATASETS = {"instance": "COCO", "panoptic": "COCO", "semantic": "ADE20K"}
"""Of which the published models for a task are taken when a backbone is all that is named."""
MODEL, SMALL_MODEL = "swin_t", "own_data/small"
"""Unless a model is named: to fine-tune, and to train from random weights on a CPU."""


class ModelChoice(NamedTuple):
    """A model.

    Attributes:
        config_file: what all settings start from.
        reason: why this one.
        weights: for MODEL.WEIGHTS; "" for random ones.
        origin: what these weights are.
    """

    config_file: Path
    reason: str
    weights: str
    origin: str


def short_names(task: str) -> dict[str, str]:
    """The published models for a task by the name of their backbone, such as `swin_t` or `swin_b_in21k`."""
    return {
        re.sub(r"\W+", "_", model.backbone.lower()).strip("_"): name
        for name, model in published_models().items()
        if (model.task, model.dataset) == (task, DATASETS[task])
    }


def choose_model(
    task: str, model: str = "", *, weights: str = "", from_scratch: bool = False, on_gpu: bool
) -> ModelChoice:
    """The config file and the weights of a training on own data.

    Args:
        task: "instance", "panoptic" or "semantic".
        model: a short name, one in the model zoo, or a config file; "" for what suits.
        weights: what to start from; "" for the checkpoint published for the model, or else what the config file says.
        from_scratch: start from random weights.

    Raises:
        ValueError: both `weights` and `from_scratch`, or a model that is not known.
    """
    if weights and from_scratch:
        raise ValueError("--weights and --from-scratch contradict each other: leave one out")
    small = not model and from_scratch and not on_gpu
    named = model or (SMALL_MODEL if small else MODEL)
    reason = (
        "as asked"
        if model
        else "a small one: random weights learn on a CPU"
        if small
        else "quick, and good to fine-tune"
    )
    short = short_names(task)
    name = short.get(re.sub(r"\W+", "_", named.lower()).strip("_"), named)
    try:
        file = find_config_file(name)
    except FileNotFoundError as error:
        known = did_you_mean(named, short, else_all=True)
        raise ValueError(f"--model {named} is none of the short names for this task{known}; and {error}") from error
    name = shipped_name(file)
    if from_scratch:
        return ModelChoice(file, reason, "", "random, as --from-scratch asks")
    if weights:
        return ModelChoice(file, reason, weights, "as --weights asks")
    if name in published_models():
        return ModelChoice(file, reason, f"{ZOO}{name}", "the published checkpoint of the model")
    found = load_config_file(file).get("MODEL", {}).get("WEIGHTS", "")
    return ModelChoice(
        file, reason, found, "as the config file says" if found else "RANDOM: the config file names none"
    )


def check_weights(weights: str) -> None:
    """Download weights if need be.

    Raises:
        FileNotFoundError: they cannot be had; the message names the ways out.
    """
    try:
        local_path(weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. Or start from other weights with --weights FILE, a checkpoint or a pre-trained backbone, or "
            "from random ones with --from-scratch, which takes far more training"
        ) from error
