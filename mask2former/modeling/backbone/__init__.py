"""Backbones: they turn an image batch into feature maps `res2` to `res5` (strides 4 to 32)."""

from .resnet import ResNet
from .swin import D2SwinTransformer, SwinTransformer

__all__ = ["D2SwinTransformer", "ResNet", "SwinTransformer"]
