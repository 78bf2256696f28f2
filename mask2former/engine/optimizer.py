"""Optimiser, its parameter groups, and gradient clipping, as the published models were trained."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mask2former.d2.config import CfgNode
from mask2former.engine.parameter_rules import Rules, by_pattern, layer_factors
from mask2former.engine.sharding import is_divided, local, whole

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
)
"""Layers whose parameters take WEIGHT_DECAY_NORM."""

POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")
"""Parameters (by name) of Swin that are never decayed."""

GradientClipper = Callable[[Iterable[nn.Parameter]], Tensor]
"""Clips gradients in place; returns their norm over all parameters before clipping (scalar tensor)."""


class ClippingOptimizer(Optimizer):
    """Base of optimisers whose `step` clips the gradients first, so that every training loop gets clipping.

    A loop that wants to see the norm before the step calls `clip_gradients` itself; `step` then does not repeat it.
    """

    _clip: GradientClipper
    _is_clipped = False

    def set_clipper(self, clip: GradientClipper) -> None:
        """Say how to clip; to be called once, after the constructor."""
        self._clip = clip
        self._step_supports_amp_scaling = False  # a GradScaler must unscale the gradients before they are clipped

    def clip_gradients(self) -> Tensor:
        """Clip the gradients of all parameters now; returns their norm before (scalar tensor)."""
        norm = self._clip(parameter for group in self.param_groups for parameter in group["params"])
        self._is_clipped = True
        return norm

    def step(self, closure: Any = None) -> Any:
        """Clip unless that is done, then update.

        Raises:
            ValueError: a closure is given; it would make new gradients after the clipping.
        """
        if closure is not None:
            raise ValueError("an optimiser that clips takes no closure")
        if not self._is_clipped:
            self.clip_gradients()
        self._is_clipped = False
        return super().step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; new ones are clipped again, also where the step was left out."""
        self._is_clipped = False
        super().zero_grad(set_to_none)


class ClippingAdamW(ClippingOptimizer, AdamW):
    """AdamW that clips."""


class ClippingSGD(ClippingOptimizer, SGD):
    """SGD that clips."""


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    backbone_multiplier: float,
    layer_decay: float = 1.0,
    lr_multipliers: Rules = (),
    weight_decays: Rules = (),
) -> list[dict[str, Any]]:
    """Trainable parameters of `model`, grouped by the hyper-parameters that the published recipe gives them.

    Parameters under a module named `backbone` learn at `base_lr * backbone_multiplier`. Normalisation layers
    decay with `weight_decay_norm`, `nn.Embedding` with `weight_decay_embed`, Swin's position tables not at all.
    A parameter shared by several modules counts once, where it occurs first.

    Args:
        layer_decay: factor of the learning rate from each layer of the backbone to the one before, see `layer_factors`.
        lr_multipliers: factors of the learning rate that follows from all this, by pattern of parameter names; the
            last pattern that matches counts.
        weight_decays: weight decays in place of those that follow from this, likewise.

    Raises:
        ValueError: a pattern matches no trainable parameter, or the backbone does not say the order of its layers.

    Returns:
        Groups `{"params", "lr", "weight_decay"}` in order of first occurrence, parameters in the order of
        `model.named_modules()`: the same for every process and every run, so that optimiser state resumes.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    entries = list(_unique_parameters(model))
    full_names = [f"{module_name}.{name}".removeprefix(".") for module_name, name, _, _ in entries]
    factors = layer_factors(model, layer_decay, full_names)
    multipliers = by_pattern(lr_multipliers, full_names, key="SOLVER.LR_MULTIPLIERS")
    decays = by_pattern(weight_decays, full_names, key="SOLVER.WEIGHT_DECAYS")
    for full_name, (module_name, name, module, parameter) in zip(full_names, entries, strict=True):
        lr = base_lr * backbone_multiplier if "backbone" in module_name else base_lr
        decay = weight_decay
        if any(table in name for table in POSITION_TABLES):
            decay = 0.0
        if isinstance(module, NORM_LAYERS):
            decay = weight_decay_norm
        if isinstance(module, nn.Embedding):
            decay = weight_decay_embed
        lr *= factors.get(full_name, 1.0) * multipliers.get(full_name, 1.0)
        decay = decays.get(full_name, decay)
        groups.setdefault((lr, decay), []).append(parameter)
    # few groups mean few, large fused kernels per step
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _unique_parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Parameter]]:
    """(module name, parameter name, module, parameter) of every trainable parameter, shared ones once."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module_name, name, module, parameter


def build_optimizer(cfg: CfgNode, model: nn.Module) -> ClippingOptimizer:
    """The optimiser that `SOLVER.OPTIMIZER` names ("ADAMW" or "SGD"), fused where PyTorch can.

    It clips as `SOLVER.CLIP_GRADIENTS` says, see `build_gradient_clipper`.

    Raises:
        ValueError: a name is unknown, or the model has nothing to train.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        layer_decay=solver.LAYER_DECAY,
        lr_multipliers=solver.LR_MULTIPLIERS,
        weight_decays=solver.WEIGHT_DECAYS,
    )
    if not groups:
        raise ValueError("the model has no trainable parameter: every one has requires_grad=False")
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    name = solver.OPTIMIZER.upper()
    optimizer: ClippingOptimizer
    if name == "ADAMW":
        optimizer = ClippingAdamW(groups, lr=solver.BASE_LR, fused=fused)
    elif name == "SGD":
        momentum, nesterov = solver.MOMENTUM, solver.NESTEROV
        fused &= not any(map(is_divided, parameters))  # for which PyTorch has no such kernel
        optimizer = ClippingSGD(groups, lr=solver.BASE_LR, momentum=momentum, nesterov=nesterov, fused=fused)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}, expected ADAMW or SGD")
    optimizer.set_clipper(build_gradient_clipper(cfg))
    return optimizer


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper:
    """The clipping that `SOLVER.CLIP_GRADIENTS` describes.

    `CLIP_TYPE` "full_model" limits the norm (NORM_TYPE) over all parameters together to CLIP_VALUE, "norm" that
    of every parameter by itself, "value" every element. A CLIP_VALUE of 0 means no clipping, as published.

    Raises:
        ValueError: the type is unknown.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.CLIP_TYPE not in ("full_model", "norm", "value"):
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}, expected full_model, norm or value")
    kind = clip.CLIP_TYPE if clip.ENABLED and clip.CLIP_VALUE > 0 else None
    value, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    def clip_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
        parameters = list(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients, norm_type))
        if kind == "full_model":
            nn.utils.clip_grads_with_norm_(parameters, value, norm)
        elif kind == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, value, norm_type)
        elif kind == "value":
            nn.utils.clip_grad_value_(parameters, value)
        return norm

    return clip_gradients


def nonfinite_gradients(model: nn.Module, *, limit: int = 3) -> list[str]:
    """Names of the first `limit` parameters whose gradient holds an infinite or undefined value."""
    names: list[str] = []
    for name, parameter in model.named_parameters():
        if len(names) == limit:
            break
        if parameter.grad is not None and not torch.isfinite(local(parameter.grad)).all():
            names.append(name)
    return names
