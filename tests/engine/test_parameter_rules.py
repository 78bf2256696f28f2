"""Learning rates by layer and by pattern of names, weight decays by pattern, and the table that shows them."""

import pytest
import torch
from torch import nn

from mask2former import get_cfg
from mask2former.d2 import SOURCE
from mask2former.engine.optimizer import build_optimizer, parameter_groups
from mask2former.engine.parameter_rules import by_pattern, layer_factors
from mask2former.engine.summary import group_table
from mask2former.modeling.backbone import SwinTransformer
from tests.helpers.models import small_model

HYPER = {
    "base_lr": 1.0,
    "weight_decay": 0.05,
    "weight_decay_norm": 0.0,
    "weight_decay_embed": 0.0,
    "backbone_multiplier": 0.5,
}


class Layered(nn.Module):
    """Three layers; the second holds a parameter of its own beside a module, the norm is in none."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 2, bias=False)
        self.table = nn.Parameter(torch.zeros(2))
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(11))
        self.norm = nn.LayerNorm(2)

    def layer_names(self):
        return [["embed"], ["table", "blocks.0"], ["blocks.1", "blocks.10", "no_such_part"]]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Layered()
        self.head = nn.Linear(2, 2)


def settings(model, **rules):
    """Name → (learning rate, weight decay)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, **HYPER, **rules)
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_layer_decay_in_closed_form():
    found = settings(Model(), layer_decay=0.8)
    rates = {name: lr for name, (lr, _) in found.items()}
    assert rates["head.weight"] == 1.0
    assert rates["backbone.norm.weight"] == 0.5  # in no layer: on top of all
    assert rates["backbone.blocks.1.weight"] == rates["backbone.blocks.10.bias"] == pytest.approx(0.5 * 0.8)
    assert rates["backbone.blocks.0.weight"] == rates["backbone.table"] == pytest.approx(0.5 * 0.8**2)
    assert rates["backbone.embed.weight"] == pytest.approx(0.5 * 0.8**3)
    assert rates["backbone.blocks.2.weight"] == 0.5
    assert {decay for name, (_, decay) in found.items() if "norm" not in name} == {0.05}


def test_layer_decay_of_1_changes_nothing():
    plain, one = (parameter_groups(Model(), **HYPER, **rules) for rules in ({}, {"layer_decay": 1.0}))
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in plain] == [
        (g["lr"], g["weight_decay"], len(g["params"])) for g in one
    ]


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_impossible_layer_decay_is_refused(decay):
    with pytest.raises(ValueError, match=rf"SOLVER\.LAYER_DECAY is {decay}"):
        settings(Model(), layer_decay=decay)


def test_backbone_without_an_order_is_refused():
    with pytest.raises(ValueError, match="Linear does not say: give it a method layer_names"):
        layer_factors(nn.ModuleDict({"backbone": nn.Linear(1, 1)}), 0.9, [])


def test_layers_of_resnet():
    """Stem, then two blocks of each of four stages: nine layers; all of the backbone is in one."""
    model = small_model()
    names = [name for name, _ in model.named_parameters()]
    factors = layer_factors(model, 0.5, names)
    assert factors["backbone.stem.conv1.weight"] == 0.5**9
    assert factors["backbone.res2.0.conv1.weight"] == 0.5**8
    assert factors["backbone.res4.1.conv2.weight"] == 0.5**3
    assert factors["backbone.res5.1.conv2.weight"] == 0.5
    assert factors.keys() == {name for name in names if name.startswith("backbone.")}


def test_layers_of_swin():
    """Embedding, then 1 + 2 + 1 + 1 blocks: six layers; norms of feature maps are in none."""
    model = nn.Module()
    model.backbone = SwinTransformer(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 1, 1), ape=True)
    names = [name for name, _ in model.named_parameters()]
    factors = layer_factors(model, 0.5, names)
    assert factors["backbone.patch_embed.proj.weight"] == factors["backbone.absolute_pos_embed"] == 0.5**6
    assert factors["backbone.layers.0.blocks.0.norm1.weight"] == factors["backbone.layers.0.downsample.norm.bias"]
    assert factors["backbone.layers.0.downsample.norm.bias"] == 0.5**5
    assert factors["backbone.layers.1.blocks.0.attn.qkv.weight"] == 0.5**4
    assert factors["backbone.layers.1.downsample.reduction.weight"] == 0.5**3
    assert factors["backbone.layers.3.blocks.0.mlp.fc1.bias"] == 0.5
    assert names - factors.keys() == {f"backbone.norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}


def test_rules_by_pattern_of_names():
    """Factors multiply what follows from the other keys, decays replace it; of several patterns the last counts."""
    found = settings(
        Model(),
        layer_decay=0.8,
        lr_multipliers=[("*.bias", 2.0), ("backbone.blocks.1.*", 3), ("head.weight", 0.1)],
        weight_decays=[("*", 0.3), ("*.bias", 0.0)],
    )
    assert found["head.weight"] == (pytest.approx(0.1), 0.3)
    assert found["head.bias"] == (2.0, 0.0)
    assert found["backbone.blocks.0.bias"] == (pytest.approx(0.5 * 0.8**2 * 2), 0.0)
    assert found["backbone.blocks.1.bias"] == (pytest.approx(0.5 * 0.8 * 3), 0.0)
    assert found["backbone.norm.weight"] == (0.5, 0.3)


@pytest.mark.parametrize("key", ["LR_MULTIPLIERS", "WEIGHT_DECAYS"])
def test_pattern_that_matches_nothing_is_named(key):
    cfg = get_cfg()
    cfg.SOLVER[key] = [["*", 1.0], ["head.weigt", 0.0]]
    with pytest.raises(ValueError, match=rf"SOLVER\.{key} 'head\.weigt' matches nothing.*did you mean head\.weight"):
        build_optimizer(cfg, Model())


def test_frozen_parameters_match_no_rule():
    model = Model()
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'head\.\*' matches nothing"):
        settings(model, lr_multipliers=[("head.*", 2.0)])


@pytest.mark.parametrize("rule", ["*", ["*"], ["*", "0.1"], ["*", -1.0], [1, 1.0]])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(ValueError, match=r"SOLVER\.WEIGHT_DECAYS has .*give pairs"):
        by_pattern([rule], ["a"], key="SOLVER.WEIGHT_DECAYS")


def test_keys_reach_the_groups():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.5, 0.05
    cfg.SOLVER.LAYER_DECAY = 0.8
    cfg.merge_from_list(["SOLVER.LR_MULTIPLIERS", "[['*.bias', 2.0]]", "SOLVER.WEIGHT_DECAYS", "[['head.*', 0.1]]"])
    model = Model()
    groups = build_optimizer(cfg, model).param_groups
    found = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found[model.head.bias] == (2.0, 0.1)
    assert found[model.backbone.embed.weight] == (pytest.approx(0.5 * 0.8**3), 0.05)


def test_table_of_groups():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0, 0.5
    model = Model()
    model.backbone.norm.requires_grad_(False)
    rows = [" ".join(line.split()) for line in group_table(model, build_optimizer(cfg, model)).splitlines()[2:]]
    assert rows == [
        "0.5 0.0001 24 72 backbone (table, weight, bias)",
        "1 0.0001 2 6 head (weight, bias)",
        "frozen 2 4 backbone.norm (weight, bias)",
    ]


def test_table_has_one_line_for_each_setting():
    model = Model()
    rate = {"lr": 0.1, "weight_decay": 0.0}
    blocks = [{"params": list(block.parameters()), **rate} for block in model.backbone.blocks[:2]]
    optimizer = torch.optim.SGD([*blocks, {"params": [model.head.bias], **rate}])
    row = group_table(model, optimizer).splitlines()[2]
    assert row.split() == ["0.1", "0", "5", "14", "backbone.blocks", "(weight,", "bias),", "head", "(bias)"]


@pytest.mark.skipif(SOURCE == "bundled", reason="needs Detectron2")
def test_resnet_of_detectron2_says_its_order():
    """Detectron2's own class, whose layers the tests above count."""
    assert type(small_model().backbone).__module__.startswith("detectron2")
