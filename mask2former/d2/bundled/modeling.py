"""Registries and builders of the model and its parts. Shapes: C classes, H height, W width."""

from abc import ABCMeta, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.registry import Registry
from torch import Tensor, nn

from mask2former.d2.bundled.config import CfgNode
from mask2former.d2.bundled.layers import ShapeSpec

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models, called with `obj(cfg)`; each returns an `nn.Module`."

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Backbones, called with `obj(cfg, input_shape: ShapeSpec)`; each returns a `Backbone`."

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = (
    "Segmentation heads and pixel decoders, called with `obj(cfg, input_shape: dict[str, ShapeSpec])`."
)


class Backbone(nn.Module, metaclass=ABCMeta):
    """Image → named feature maps.

    A subclass overrides `output_shape`, or sets `_out_features` (names) with `_out_feature_channels` and
    `_out_feature_strides` (by name).
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """(B, 3, H, W) → feature maps by name, each (B, C, H / stride, W / stride)."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0 for no such need."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Optional keys: "size_divisibility" and "square_size", the side of the square to pad to."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def build_model(cfg: CfgNode) -> nn.Module:
    """The model MODEL.META_ARCHITECTURE on MODEL.DEVICE; loads no weights."""
    model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone MODEL.BACKBONE.NAME for images with as many channels as PIXEL_MEAN, unless told.

    Raises:
        TypeError: when what is registered under the name does not build a `Backbone`.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise TypeError(f"{cfg.MODEL.BACKBONE.NAME} built a {type(backbone).__name__}, which is no Backbone.")
    return backbone


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The head MODEL.SEM_SEG_HEAD.NAME for feature maps of these shapes."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Remove the padding of a (C, H, W) map, then resize it bilinearly to (C, output_height, output_width).

    `img_size` is the (height, width) of the image within the padded input.
    """
    unpadded = result[None, :, : img_size[0], : img_size[1]]
    size = (output_height, output_width)
    return F.interpolate(unpadded, size=size, mode="bilinear", align_corners=False)[0]
