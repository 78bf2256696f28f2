"""Frozen parts: chosen by name, byte-identical after training, without optimiser state or activations."""

import pytest
import torch
from torch import nn

from mask2former.engine.freeze import freeze
from tests.engine.test_trainer import train
from tests.helpers.models import example, small_model, total
from tests.helpers.training import TinyModel, TinyTrainer, tiny_cfg


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.norm(self.linear(x)))


class Model(TinyModel):
    """Its backbone has statistics and drops."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Part(), nn.Linear(8, 8))


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_names_of_modules_and_of_parameters():
    model = Model()
    assert freeze(model, ["backbone.0"]) == [model.backbone[0]]
    assert trainable(model) == ["backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"]
    assert freeze(model, ["*.1.weight"]) == []
    assert trainable(model) == ["backbone.1.bias", "head.weight", "head.bias"]


def test_module_all_of_whose_parameters_are_named_is_frozen():
    model = Model()
    assert freeze(model, ["backbone.?.*"]) == [model.backbone]
    model = Model()
    assert freeze(model, ["*.norm.weight", "*.norm.bias"]) == [model.backbone[0].norm]


def test_part_frozen_before_does_not_freeze_others():
    """As the stem of a ResNet under FREEZE_AT: it has its own frozen statistics."""
    model = Model()
    model.head.requires_grad_(False)
    assert freeze(model, ["backbone.1"]) == [model.backbone[1]]


def test_nothing_is_frozen_without_patterns():
    model = Model()
    assert freeze(model, []) == []
    assert len(trainable(model)) == len(list(model.parameters()))


def test_pattern_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.FREEZE 'bakbone' matches nothing.*did you mean backbone"):
        freeze(Model(), ["head", "bakbone"])


class Freezing(TinyTrainer):
    @classmethod
    def build_model(cls, cfg):
        return Model()

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        model.train()  # of all that is in it, as an evaluation leaves a model
        return {}


@pytest.mark.parametrize("pattern", ["backbone.0", "backbone.0.*"])
def test_frozen_parts_stay_byte_identical(tmp_path, pattern):
    cfg = tiny_cfg(tmp_path, WEIGHT_DECAY=0.5)
    cfg.MODEL.FREEZE = [pattern]
    cfg.TEST.EVAL_PERIOD = 2
    before = {name: value.clone() for name, value in Freezing(cfg).raw_model.state_dict().items()}
    trainer, _ = train(cfg, trainer_class=Freezing)
    after = trainer.raw_model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"backbone.1.weight", "backbone.1.bias", "head.weight", "head.bias"}
    assert set(trainer.optimizer.state) == {p for p in trainer.raw_model.parameters() if p.requires_grad}
    assert len(trainer.optimizer.state) == 4


def test_frozen_backbone_keeps_no_activations():
    """What the backward pass keeps of a frozen backbone is nothing, of a trained one a lot."""
    kept = {}
    for patterns in ([], ["backbone"]):
        model = small_model().train()
        freeze(model, patterns)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        images = torch.rand(1, 3, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = model.backbone(images)
        kept[len(patterns)] = sum(sizes)
        assert all(feature.requires_grad == (not patterns) for feature in features.values())
        total(model([example()])).backward()
        assert all((p.grad is None) == bool(patterns) for p in model.backbone.parameters())
        assert all(p.grad is not None for p in model.sem_seg_head.parameters())
    assert kept[0] > 100_000
    assert kept[1] == 0
