"""ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385) with Detectron2's parameter names.

Shapes: B batch, C channels, H and W image size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mask2former.d2.config import CfgNode
from mask2former.d2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from mask2former.d2.modeling import BACKBONE_REGISTRY, Backbone

logger = logging.getLogger(__name__)

Norm = str | Callable[[int], nn.Module]

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
STEMS = ("basic", "deeplab")
STAGES = ("res2", "res3", "res4", "res5")


class _Conv2d(Conv2d):
    """A convolution and its norm. In inference a norm with fixed statistics becomes part of the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        fixed = isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, BATCH_NORMS) and not norm.training)
        observed = norm is not None and (norm._forward_hooks or norm._forward_pre_hooks)
        if not fixed or observed or torch.is_grad_enabled():
            return super().forward(x)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    norm: Norm,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """Convolution without bias, followed by a norm; keeps the size at stride 1."""
    conv = _Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        norm=get_norm(norm, out_channels),
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Stem(CNNBlockBase):
    """The layers before `res2`: one 7x7 convolution, or DeepLab's three 3x3 ones, then max pooling."""

    def __init__(self, *, kind: str, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, 4)
        self.deep = kind == "deeplab"
        if self.deep:
            self.conv1 = _conv(in_channels, out_channels // 2, 3, stride=2, norm=norm)
            self.conv2 = _conv(out_channels // 2, out_channels // 2, 3, norm=norm)
            self.conv3 = _conv(out_channels // 2, out_channels, 3, norm=norm)
        else:
            self.conv1 = _conv(in_channels, out_channels, 7, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H/4, W/4)."""
        x = F.relu_(self.conv1(x))
        if self.deep:
            x = F.relu_(self.conv2(x))
            x = F.relu_(self.conv3(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions and a shortcut, as in ResNet-18 and -34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = _conv(out_channels, out_channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H/stride, W/stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.relu_(self.conv1(x))
        return F.relu_(self.conv2(x).add_(shortcut))


class BottleneckBlock(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolutions and a shortcut, as in ResNet-50 and deeper."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        dilation: int,
        groups: int,
        stride_in_1x1: bool,
        norm: Norm,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.conv1 = _conv(in_channels, width, 1, stride=stride_1x1, norm=norm)
        self.conv2 = _conv(width, width, 3, stride=stride_3x3, dilation=dilation, groups=groups, norm=norm)
        self.conv3 = _conv(width, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H/stride, W/stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = F.relu_(self.conv1(x))
        x = F.relu_(self.conv2(x))
        return F.relu_(self.conv3(x).add_(shortcut))


class ResNet(Backbone):
    """ResNet that returns the feature maps of chosen stages.

    Stages behind the last one asked for are not built, so that no parameter goes unused.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: channels of the image.
        stem: "basic" or "deeplab".
        stem_channels: channels after the stem (128 for R-103).
        res2_channels: channels of `res2`, doubled by each later stage. None: 256, or 64 below depth 50.
        groups: groups of the 3x3 convolutions (ResNeXt), `width_per_group` channels each in `res2`.
        norm: any of Detectron2's norms, such as "FrozenBN", "BN", "SyncBN", "GN".
        stride_in_1x1: put a stage's stride into its first 1x1 convolution, as MSRA's models do, not the 3x3.
        res4_dilation: 1 or 2; 2 needs `res5_dilation` 4. A dilated stage has stride 1.
        res5_dilation: 1, 2 or 4.
        res5_multi_grid: dilation of each block of `res5`, relative to `res5_dilation`.
        out_features: any of "stem", "res2", "res3", "res4", "res5".
        freeze_at: see `freeze`.
        use_checkpoint: recompute each block's activations in the backward pass, to save memory.

    Raises:
        ValueError: for a value outside of these choices.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        in_channels: int = 3,
        stem: str = "basic",
        stem_channels: int = 64,
        res2_channels: int | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        norm: Norm = "FrozenBN",
        stride_in_1x1: bool = False,
        res4_dilation: int = 1,
        res5_dilation: int = 1,
        res5_multi_grid: Sequence[int] = (1, 1, 1),
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if res2_channels is None:
            res2_channels = 64 if depth < 50 else 256
        _check_choices(depth, stem, res2_channels, groups, out_features)
        dilations = _dilations(depth, res4_dilation, res5_dilation, res5_multi_grid)
        self.use_checkpoint = use_checkpoint
        self.stem = Stem(kind=stem, in_channels=in_channels, out_channels=stem_channels, norm=norm)
        self.stage_names = STAGES[: max(("stem", *STAGES).index(name) for name in out_features)]
        self._out_features = list(out_features)
        self._out_feature_channels = {"stem": stem_channels}
        self._out_feature_strides = {"stem": self.stem.stride}

        channels, total_stride = stem_channels, self.stem.stride
        for index, name in enumerate(self.stage_names):
            stride = 1 if index == 0 or dilations[index][0] > 1 else 2
            out_channels = res2_channels << index
            bottleneck = {
                "bottleneck_channels": (groups * width_per_group) << index,
                "groups": groups,
                "stride_in_1x1": stride_in_1x1,
            }
            stage = _stage(depth, channels, out_channels, stride, dilations[index][1], norm, bottleneck)
            self.add_module(name, stage)
            channels, total_stride = out_channels, total_stride * stride
            self._out_feature_channels[name] = channels
            self._out_feature_strides[name] = total_stride
        self.freeze(freeze_at)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map of `forward`."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    def layer_names(self) -> list[list[str]]:
        """Names of the modules of each layer, from the image on: the stem, then block by block."""
        blocks = [
            [f"{name}.{i}"] for name in self.stage_names for i in range(len(list(getattr(self, name).children())))
        ]
        return [["stem"], *blocks]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised images (B, in_channels, H, W), of any size, to the chosen feature maps by name.

        A map of stride s has the size (ceil(H / s), ceil(W / s)).
        """
        if x.dim() != 4:
            raise ValueError(f"ResNet takes a batch of shape (B, C, H, W), not {tuple(x.shape)}")
        outputs = {}
        x = self.stem(x.contiguous(memory_format=torch.channels_last))  # the faster order of most convolutions
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            for block in getattr(self, name).children():
                x = _recomputed(block, x) if self.use_checkpoint and self.training else block(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> ResNet:
        """Make the first parts untrainable and their batch norms frozen ones, as Detectron2 does.

        Args:
            freeze_at: 0 nothing, 1 the stem, 2 the stem and `res2`, up to 5, everything.
        """
        parts = [self.stem, *(getattr(self, name) for name in self.stage_names)]
        for part in parts[: max(freeze_at, 0)]:
            for block in [part] if part is self.stem else part.children():
                cast(CNNBlockBase, block).freeze()
        return self


def _check_choices(depth: int, stem: str, res2_channels: int, groups: int, out_features: Sequence[str]) -> None:
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {depth}; it must be one of {list(BLOCKS_PER_STAGE)}")
    if stem not in STEMS:
        raise ValueError(f"MODEL.RESNETS.STEM_TYPE is {stem!r}; it must be one of {list(STEMS)}")
    known = ("stem", *STAGES)
    if not out_features or any(name not in known for name in out_features):
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES are {list(out_features)}; they must be one or more of {list(known)}"
        )
    if depth < 50 and res2_channels != 64:
        raise ValueError(f"MODEL.RESNETS.RES2_OUT_CHANNELS is {res2_channels}; it must be 64 for ResNet-{depth}")
    if depth < 50 and groups != 1:
        raise ValueError(f"MODEL.RESNETS.NUM_GROUPS is {groups}; it must be 1 for ResNet-{depth}")


def _dilations(
    depth: int, res4_dilation: int, res5_dilation: int, res5_multi_grid: Sequence[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Return each stage's dilation, which decides on its stride, and that of each of its blocks."""
    if (res4_dilation, res5_dilation) not in {(1, 1), (1, 2), (1, 4), (2, 4)}:
        raise ValueError(
            f"MODEL.RESNETS.RES4_DILATION and RES5_DILATION are {res4_dilation} and {res5_dilation}; "
            "they must be 1 and 1, 1 and 2, 1 and 4, or 2 and 4"
        )
    counts = BLOCKS_PER_STAGE[depth]
    if depth < 50:
        if res5_dilation != 1 or set(res5_multi_grid) != {1}:
            raise ValueError(
                f"MODEL.RESNETS.RES5_DILATION is {res5_dilation}, RES5_MULTI_GRID {list(res5_multi_grid)}; "
                f"all must be 1 for ResNet-{depth}"
            )
        return [(1, (1,) * count) for count in counts]
    if len(res5_multi_grid) != counts[3]:
        raise ValueError(f"MODEL.RESNETS.RES5_MULTI_GRID is {list(res5_multi_grid)}; it needs three numbers")
    return [
        (1, (1,) * counts[0]),
        (1, (1,) * counts[1]),
        (res4_dilation, (res4_dilation,) * counts[2]),
        (res5_dilation, tuple(res5_dilation * factor for factor in res5_multi_grid)),
    ]


def _stage(
    depth: int,
    in_channels: int,
    out_channels: int,
    stride: int,
    dilations: tuple[int, ...],
    norm: Norm,
    bottleneck: dict[str, Any],
) -> nn.Sequential:
    """Return a stage with one block for each of `dilations`; the first block changes channels and size."""
    blocks: list[nn.Module] = []
    for dilation in dilations:
        if depth < 50:
            blocks.append(BasicBlock(in_channels, out_channels, stride=stride, norm=norm))
        else:
            blocks.append(
                BottleneckBlock(in_channels, out_channels, stride=stride, dilation=dilation, norm=norm, **bottleneck)
            )
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks)


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Run `block`, and run it again in the backward pass instead of keeping its activations."""
    if torch.compiler.is_compiling():  # which updates statistics once, whatever it computes again
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=partial(_checkpoint_contexts, block))


def _checkpoint_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Leave running statistics alone: a recomputed block must not count the same batch twice."""
    norms = [m for m in block.modules() if isinstance(m, BATCH_NORMS)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _from_config(cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """Return the constructor arguments that both registered builders share."""
    node = cfg.MODEL.RESNETS
    return {
        "depth": node.DEPTH,
        "in_channels": input_shape.channels,
        "stem_channels": node.STEM_OUT_CHANNELS,
        "res2_channels": node.RES2_OUT_CHANNELS,
        "groups": node.NUM_GROUPS,
        "width_per_group": node.WIDTH_PER_GROUP,
        "norm": node.NORM,
        "stride_in_1x1": node.STRIDE_IN_1X1,
        "res5_dilation": node.RES5_DILATION,
        "out_features": node.OUT_FEATURES,
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        "use_checkpoint": cfg.MODEL.ACTIVATION_CHECKPOINTING,
    }


def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build Detectron2's standard ResNet, which always has the basic stem and no multi-grid."""
    node = cfg.MODEL.RESNETS
    if node.STEM_TYPE != "basic" or set(node.RES5_MULTI_GRID) != {1}:
        logger.warning(
            "MODEL.BACKBONE.NAME build_resnet_backbone ignores RESNETS.STEM_TYPE and RES5_MULTI_GRID; "
            "build_resnet_deeplab_backbone reads them"
        )
    return ResNet(**_from_config(cfg, input_shape))


def build_resnet_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build DeepLab's ResNet, which also reads STEM_TYPE, RES5_MULTI_GRID and RES4_DILATION."""
    node = cfg.MODEL.RESNETS
    return ResNet(
        stem=node.STEM_TYPE,
        res4_dilation=node.RES4_DILATION,
        res5_multi_grid=node.RES5_MULTI_GRID,
        **_from_config(cfg, input_shape),
    )


for _builder in (build_resnet_backbone, build_resnet_deeplab_backbone):
    # With Detectron2 installed, its own objects hold these names already and keep them.
    if _builder.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(_builder)
