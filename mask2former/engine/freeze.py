"""Keeping parts of a model as they are, as `MODEL.FREEZE` says."""

from collections.abc import Sequence

from torch import nn

from mask2former.engine.hooks import Hook
from mask2former.engine.patterns import matching


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Make the parameters that patterns name untrainable; a module's name stands for all that is in it.

    A module is frozen if a pattern names it, or names some of its parameters and none is left to train. In training
    it must stay in evaluation mode, so that statistics do not change and nothing is dropped: see `KeepFrozen`.

    Args:
        patterns: see `mask2former.engine.patterns.matching`.

    Returns:
        The frozen modules that are in no other one of them.

    Raises:
        ValueError: a pattern matches nothing.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    named: dict[nn.Module, None] = {}  # a set in order
    for pattern in patterns:
        for name in matching(pattern, [*modules, *parameters], key="MODEL.FREEZE"):
            if name in modules:
                named[modules[name].requires_grad_(False)] = None
            else:
                parameters[name].requires_grad_(False)
                named.update(dict.fromkeys(_around(name, modules)))
    frozen = [module for module in named if not any(parameter.requires_grad for parameter in module.parameters())]
    inside = {part for module in frozen for part in module.modules() if part is not module}
    return [module for module in frozen if module not in inside]


def _around(name: str, modules: dict[str, nn.Module]) -> list[nn.Module]:
    """The modules that a parameter is in."""
    parts = name.split(".")
    return [modules[".".join(parts[:end])] for end in range(1, len(parts))]


class KeepFrozen(Hook):
    """Keeps frozen modules in evaluation mode, also after an evaluation has set the mode of the whole model."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules

    def before_step(self) -> None:
        """Set the mode."""
        for module in self._modules:
            module.eval()
