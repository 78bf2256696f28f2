"""A running average of a model's weights over the steps of training, often better than the weights themselves."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mask2former.checkpoint.load import AVERAGE
from mask2former.d2.config import CfgNode
from mask2former.engine.sharding import divided_like, local, whole

logger = logging.getLogger(__name__)


class ModelEMA:
    """Exponential moving average of the weights and floating-point buffers of a model; integers are those of now.

    Args:
        model: stays on its device from now on.
        decay: share of the average that a step leaves, in [0, 1).

    Raises:
        ValueError: `decay` is out of range.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"MODEL_EMA.DECAY is {decay}; it must be at least 0 and less than 1")
        self._model = model
        self._decay = decay
        parameters = dict(model.named_parameters(remove_duplicate=False))  # divided ones are whole in state_dict
        self._live = {name: parameters.get(name, value).detach() for name, value in model.state_dict().items()}
        self._average = {name: value.clone() for name, value in self._live.items()}
        self._averaged = [name for name, value in self._live.items() if value.is_floating_point()]
        self._copied = [name for name in self._live if name not in set(self._averaged)]

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module, optimizer: Optimizer) -> "ModelEMA | None":
        """The average that `MODEL_EMA` asks for, taken after each step of the optimiser; None if it is off."""
        if not cfg.MODEL_EMA.ENABLED:
            return None
        ema = cls(model, decay=cfg.MODEL_EMA.DECAY)
        ema.follow(optimizer)
        return ema

    def follow(self, optimizer: Optimizer) -> None:
        """Let each step of an optimiser update the average, also one that a loss scaler takes or leaves out."""
        is_due = False  # PyTorch calls the hooks of a step twice where its class has a base that was hooked itself

        def before(*_: Any) -> None:
            nonlocal is_due
            is_due = True

        def after(*_: Any) -> None:
            nonlocal is_due
            if is_due:
                self.update()
            is_due = False

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of now into the average: `average = decay * average + (1 - decay) * weights`."""
        average, live = ([local(values[name]) for name in self._averaged] for values in (self._average, self._live))
        torch._foreach_lerp_(average, live, 1 - self._decay)
        for name in self._copied:
            self._average[name].copy_(self._live[name])

    def restart(self) -> None:
        """Let the average begin with the weights of now."""
        for name, value in self._average.items():
            value.copy_(self._live[name])

    def averaged_model(self, fresh: nn.Module | None = None) -> nn.Module:
        """A copy of the model, or a `fresh` one of the same config, with the average in place of its weights.

        A model that is divided among processes needs a fresh one, and all of them call this together.
        """
        model = copy.deepcopy(self._model) if fresh is None else fresh.train(self._model.training)
        model.load_state_dict(self.state_dict())
        return model

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the names of the model's weights, whole; all processes ask together."""
        return {name: whole(value) for name, value in self._average.items()}

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue the average of a checkpoint; begin with its weights if it has none, as when the average was off."""
        if AVERAGE not in checkpoint:
            logger.warning("The checkpoint has no average of weights: it begins with the weights of now")
        kept = checkpoint.get(AVERAGE, self._live)
        for name, value in self._average.items():
            value.copy_(divided_like(value, kept[name]))
