"""What single parameters are trained with: rules by pattern of names, and by layer of the backbone."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mask2former.engine.patterns import matching

Rules = Sequence[tuple[str, float]]
"""Pairs of a pattern (see `matching`) and a number."""


def by_pattern(rules: Rules, names: Sequence[str], *, key: str) -> dict[str, float]:
    """The number for each name that a pattern matches, of the last pattern that does.

    Raises:
        ValueError: a rule is no such pair, its number is negative, or its pattern matches no name.
    """
    numbers: dict[str, float] = {}
    for rule in rules:
        match rule:
            case [str(pattern), int() | float() as number] if number >= 0:
                numbers |= dict.fromkeys(matching(pattern, names, key=key), float(number))
            case _:
                raise ValueError(f"{key} has {rule!r}; give pairs [pattern, number], the number not negative")
    return numbers


def layer_factors(model: nn.Module, decay: float, names: Sequence[str]) -> dict[str, float]:
    """Factors of the learning rate of the parameters in the backbone's layers (BEiT, arXiv 2106.08254, appendix).

    The last of n layers has `decay`, the one before it `decay` squared, the first `decay` to the power of n. What is
    in no layer, such as norms of feature maps and the head, is not listed: its factor is 1.

    Args:
        model: has a `backbone` whose method `layer_names` gives, from the image on, the names of the modules and
            parameters of each layer; or Detectron2's ResNet.
        names: of parameters of the model.

    Raises:
        ValueError: `decay` is not in (0, 1], or the backbone does not say the order of its layers.
    """
    if decay == 1.0:
        return {}
    if not 0 < decay < 1:
        raise ValueError(f"SOLVER.LAYER_DECAY is {decay}; it must be more than 0 and at most 1")
    layers = _layer_names(getattr(model, "backbone", None))
    factors: dict[str, float] = {}
    for index, layer in enumerate(layers):
        for part in (f"backbone.{name}" for name in layer):
            inside = [name for name in names if name == part or name.startswith(f"{part}.")]
            factors |= dict.fromkeys(inside, decay ** (len(layers) - index))
    return factors


def _layer_names(backbone: Any) -> list[list[str]]:
    if hasattr(backbone, "layer_names"):
        return backbone.layer_names()
    if hasattr(backbone, "stage_names"):  # Detectron2's ResNet
        return [
            ["stem"],
            *([f"{name}.{i}"] for name in backbone.stage_names for i in range(len(getattr(backbone, name)))),
        ]
    raise ValueError(
        f"SOLVER.LAYER_DECAY needs the order of the backbone's layers, which {type(backbone).__name__} does not say: "
        "give it a method layer_names, or set SOLVER.LAYER_DECAY 1.0"
    )
