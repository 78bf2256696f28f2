"""What pixel decoders share: their input by name and stride, and the convolutions of feature pyramids."""

from __future__ import annotations

import torch.nn.functional as F

from mask2former.d2.config import CfgNode
from mask2former.d2.layers import Conv2d, ShapeSpec, get_norm


def select_features(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """Return the shapes of `MODEL.SEM_SEG_HEAD.IN_FEATURES`.

    Raises:
        ValueError: if the backbone does not give one of them.
    """
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    absent = [name for name in names if name not in input_shape]
    if absent:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {absent}, but the backbone gives {list(input_shape)}")
    return {name: input_shape[name] for name in names}


def lateral_convolution(in_channels: int, conv_dim: int, norm: str) -> Conv2d:
    """Bring a feature map to `conv_dim` channels: 1x1, norm."""
    return Conv2d(in_channels, conv_dim, kernel_size=1, bias=norm == "", norm=get_norm(norm, conv_dim))


def output_convolution(in_channels: int, conv_dim: int, norm: str) -> Conv2d:
    """Smooth a level of the pyramid: 3x3, norm, ReLU."""
    return Conv2d(
        in_channels,
        conv_dim,
        kernel_size=3,
        padding=1,
        bias=norm == "",
        norm=get_norm(norm, conv_dim),
        activation=F.relu_,
    )


def channels_of(input_shape: dict[str, ShapeSpec], name: str) -> int:
    """Return the channels of a feature; a ValueError if the backbone does not say."""
    return _known(input_shape[name].channels, name, "channels")


def stride_of(input_shape: dict[str, ShapeSpec], name: str) -> int:
    """Return the stride of a feature; a ValueError if the backbone does not say."""
    return _known(input_shape[name].stride, name, "stride")


def _known(value: int | None, name: str, what: str) -> int:
    if value is None:
        raise ValueError(f"the backbone does not say the {what} of its feature {name!r}")
    return value
