"""Registries and builders, as a plug-in uses them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mask2former.d2.bundled.modeling import sem_seg_postprocess
from mask2former.d2.config import CfgNode, configurable, get_cfg
from mask2former.d2.layers import ShapeSpec
from mask2former.d2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    build_backbone,
    build_model,
    build_sem_seg_head,
)
from mask2former.d2.registry import Registry


class DoorBackbone(Backbone):
    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape.channels, 4, 2, stride=2)
        self._out_features = ["res2"]
        self._out_feature_channels = {"res2": 4}
        self._out_feature_strides = {"res2": 2}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"res2": self.conv(x)}


class DoorHead(nn.Module):
    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self.linear = nn.Linear(input_shape["res2"].channels, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)


class DoorModel(nn.Module):
    @configurable
    def __init__(self, *, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, nn.Module]:
        backbone = build_backbone(cfg)
        return {"backbone": backbone, "head": build_sem_seg_head(cfg, backbone.output_shape())}


def door_no_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    return nn.Identity()


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    BACKBONE_REGISTRY.register(DoorBackbone)
    BACKBONE_REGISTRY.register()(door_no_backbone)
    SEM_SEG_HEADS_REGISTRY.register(DoorHead)
    META_ARCH_REGISTRY.register(DoorModel)
    return


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "DoorModel"
    cfg.MODEL.BACKBONE.NAME = "DoorBackbone"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "DoorHead"
    return cfg


def test_plugins_are_found_by_name(cfg: CfgNode) -> None:
    model = build_model(cfg)
    assert isinstance(model.backbone, DoorBackbone)
    assert model.head.linear.weight.shape == (54, 4)


def test_model_is_moved_to_the_device(cfg: CfgNode) -> None:
    cfg.MODEL.DEVICE = "meta"
    assert all(parameter.is_meta for parameter in build_model(cfg).parameters())


def test_backbone_is_told_the_number_of_channels(cfg: CfgNode) -> None:
    assert build_backbone(cfg).conv.in_channels == 3
    cfg.MODEL.PIXEL_MEAN = [1.0]
    assert build_backbone(cfg).conv.in_channels == 1
    assert build_backbone(cfg, ShapeSpec(channels=5)).conv.in_channels == 5


def test_backbone_describes_its_output(cfg: CfgNode) -> None:
    backbone = build_backbone(cfg)
    assert backbone.output_shape() == {"res2": ShapeSpec(channels=4, stride=2)}
    assert backbone.size_divisibility == 0
    assert backbone.padding_constraints == {}
    with pytest.raises(TypeError, match="abstract"):
        Backbone()


def test_what_is_no_backbone_is_refused(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "door_no_backbone"
    with pytest.raises((TypeError, AssertionError)):
        build_backbone(cfg)


def test_unknown_names_are_named(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.NAME = "Missing"
    with pytest.raises(KeyError, match=r"Missing.*BACKBONE"):
        build_backbone(cfg)
    with pytest.raises(AssertionError, match=r"DoorHead.*already registered"):
        SEM_SEG_HEADS_REGISTRY.register(DoorHead)
    assert "DoorHead" in SEM_SEG_HEADS_REGISTRY
    assert isinstance(SEM_SEG_HEADS_REGISTRY, Registry)


def test_postprocessing_removes_padding_then_resizes() -> None:
    result = torch.zeros(2, 6, 8)
    result[0, :4, :5] = 3.0
    resized = sem_seg_postprocess(result, (4, 5), 8, 10)
    assert resized.shape == (2, 8, 10)
    assert (resized[0] == 3).all()
    assert (resized[1] == 0).all()
    ramp = torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(sem_seg_postprocess(ramp, (1, 2), 1, 4), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))
