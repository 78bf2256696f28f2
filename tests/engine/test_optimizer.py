"""Parameter groups as published, optimisers by name, and the three kinds of clipping."""

import pytest
import torch
from torch import nn

from mask2former import get_cfg
from mask2former.engine.optimizer import (
    build_gradient_clipper,
    build_optimizer,
    nonfinite_gradients,
    parameter_groups,
)

HYPER = {
    "base_lr": 1e-4,
    "weight_decay": 0.05,
    "weight_decay_norm": 0.01,
    "weight_decay_embed": 0.02,
    "backbone_multiplier": 0.1,
}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.absolute_pos_embed = nn.Parameter(torch.zeros(2))
        self.attn = Attention()
        self.norm = nn.BatchNorm2d(2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.query_embed = nn.Embedding(2, 2)
        self.norm = nn.LayerNorm(2)
        self.conv = nn.Conv2d(2, 2, 1)
        self.group_norm = nn.GroupNorm(1, 2)
        self.shared = self.conv
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings(model, groups):
    """Name → (lr, weight decay), each parameter exactly once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[parameter] not in found
            found[names[parameter]] = (group["lr"], group["weight_decay"])
    return found


def test_parameter_groups_are_the_published_ones():
    model = Model()
    found = settings(model, parameter_groups(model, **HYPER))
    slow, fast = pytest.approx(1e-5), pytest.approx(1e-4)
    assert found == {
        "backbone.absolute_pos_embed": (slow, 0.0),
        "backbone.attn.relative_position_bias_table": (slow, 0.0),
        "backbone.attn.proj.weight": (slow, 0.05),
        "backbone.attn.proj.bias": (slow, 0.05),
        "backbone.norm.weight": (slow, 0.01),
        "backbone.norm.bias": (slow, 0.01),
        "query_embed.weight": (fast, 0.02),
        "norm.weight": (fast, 0.01),
        "norm.bias": (fast, 0.01),
        "conv.weight": (fast, 0.05),
        "conv.bias": (fast, 0.05),
        "group_norm.weight": (fast, 0.01),
        "group_norm.bias": (fast, 0.01),
    }


def test_groups_are_few_and_in_a_fixed_order():
    first, second = (parameter_groups(Model(), **HYPER) for _ in range(2))
    keys = [(group["lr"], group["weight_decay"]) for group in first]
    assert len(set(keys)) == len(keys) == 6
    assert keys == [(group["lr"], group["weight_decay"]) for group in second]
    shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in first]
    assert shapes == [[tuple(parameter.shape) for parameter in group["params"]] for group in second]


@pytest.mark.parametrize(("name", "kind"), [("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_optimizer_by_name(name, kind):
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = name
    cfg.SOLVER.BASE_LR = 1e-4
    optimizer = build_optimizer(cfg, Model())
    assert isinstance(optimizer, kind)
    assert max(group["lr"] for group in optimizer.param_groups) == 1e-4
    if name == "SGD":
        assert all(group["momentum"] == cfg.SOLVER.MOMENTUM for group in optimizer.param_groups)


def test_adamw_step_follows_the_paper():
    """First step of AdamW (arXiv 1711.05101): w (1 - lr·decay) - lr·g / (|g| + eps)."""
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.1, 0.5
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = build_optimizer(cfg, model)
    model.weight.grad = torch.full_like(model.weight, 3.0)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.05) - 0.1, abs=1e-6)


def test_unknown_optimizer_is_named():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'LION'"):
        build_optimizer(cfg, Model())


def test_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(get_cfg(), nn.Linear(1, 1).requires_grad_(False))


def clip_cfg(kind, value, *, enabled=True):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = enabled
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    return cfg


def parameters_with_gradients():
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([0.0, -4.0])
    return parameters  # the third has no gradient


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("full_model", 1.0, [[0.6, 0.0], [0.0, -0.8]]),
        ("full_model", 10.0, [[3.0, 0.0], [0.0, -4.0]]),
        ("norm", 1.0, [[1.0, 0.0], [0.0, -1.0]]),
        ("value", 3.5, [[3.0, 0.0], [0.0, -3.5]]),
        ("full_model", 0.0, [[3.0, 0.0], [0.0, -4.0]]),
        ("norm", 0.0, [[3.0, 0.0], [0.0, -4.0]]),
        ("value", 0.0, [[3.0, 0.0], [0.0, -4.0]]),
    ],
)
def test_clipping(kind, value, expected):
    parameters = parameters_with_gradients()
    norm = build_gradient_clipper(clip_cfg(kind, value))(iter(parameters))
    assert norm.item() == pytest.approx(5.0)
    for parameter, gradient in zip(parameters, expected, strict=False):
        torch.testing.assert_close(parameter.grad, torch.tensor(gradient), atol=1e-5, rtol=1e-5)


def test_no_clipping_only_measures():
    parameters = parameters_with_gradients()
    norm = build_gradient_clipper(clip_cfg("full_model", 1.0, enabled=False))(parameters)
    assert norm.item() == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == [3.0, 0.0]


def test_unknown_clip_type_is_named():
    with pytest.raises(ValueError, match=r"CLIP_TYPE is 'max'"):
        build_gradient_clipper(clip_cfg("max", 1.0))


def test_nonfinite_gradients_are_named():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].weight.grad = torch.zeros(1, 1)
    model[1].weight.grad = torch.tensor([[float("nan")]])
    model[1].bias.grad = torch.tensor([float("inf")])
    assert nonfinite_gradients(model) == ["1.weight", "1.bias"]
    assert nonfinite_gradients(model, limit=1) == ["1.weight"]


def clipping_optimizer(name, model, **clip):
    cfg = clip_cfg("full_model", 0.5, **clip)
    cfg.SOLVER.OPTIMIZER = name
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    return build_optimizer(cfg, model)


def backward(model, scaler=None):
    """Gradient (30, 40) of a weight (1, 2)."""
    loss = model(torch.tensor([[30.0, 40.0]])).sum()
    (scaler.scale(loss) if scaler else loss).backward()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("looked", [False, True])
def test_step_clips_by_itself(scaled, looked):
    """As any training loop calls it, also Detectron2's with its scaler, and ours, which wants the norm first."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = clipping_optimizer("SGD", model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for step in (1, 2):
        optimizer.zero_grad()
        backward(model, scaler)
        if looked:
            scaler.unscale_(optimizer)
            assert optimizer.clip_gradients().item() == pytest.approx(50.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        torch.testing.assert_close(model.weight.data, step * torch.tensor([[-0.3, -0.4]]), rtol=1e-5, atol=1e-5)


def test_a_norm_that_was_looked_at_counts_for_one_step():
    """Gradients of a step that was left out do not let the next one go unclipped."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = clipping_optimizer("SGD", model)
    backward(model)
    optimizer.clip_gradients()
    optimizer.zero_grad()
    backward(model)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.tensor([[-0.3, -0.4]]), rtol=1e-5, atol=1e-5)


def test_a_step_that_was_looked_at_does_not_let_the_next_go_unclipped():
    """Of a loop that does without `zero_grad`, since it sets gradients itself."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = clipping_optimizer("SGD", model)
    for step in (1, 2):
        model.weight.grad = torch.tensor([[30.0, 40.0]])
        if step == 1:
            optimizer.clip_gradients()
        optimizer.step()
        torch.testing.assert_close(model.weight.data, step * torch.tensor([[-0.3, -0.4]]), rtol=1e-5, atol=1e-5)


def test_clipping_adamw_is_adamw_on_clipped_gradients():
    torch.manual_seed(0)
    model, other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    other.load_state_dict(model.state_dict())
    optimizer = clipping_optimizer("ADAMW", model)
    reference = torch.optim.AdamW(other.parameters(), lr=1.0, weight_decay=0.0)
    for factor in (1.0, 0.001):
        optimizer.zero_grad()
        (factor * model(torch.tensor([[30.0, 40.0]]))).sum().backward()
        optimizer.step()
        other.weight.grad = torch.tensor([[0.3, 0.4]]) if factor == 1.0 else torch.tensor([[0.03, 0.04]])
        reference.step()
    torch.testing.assert_close(model.weight, other.weight)
    assert optimizer.state_dict()["param_groups"][0].keys() == reference.state_dict()["param_groups"][0].keys() | {
        "fused"
    }


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="closure"):
        build_optimizer(get_cfg(), nn.Linear(1, 1)).step(lambda: 0.0)
