"""Swin Transformer (Liu et al. 2021, https://arxiv.org/abs/2103.14030) as a backbone for dense prediction.

Shapes: B batch, C channels, H and W size of the image or of a feature map in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import ShapeSpec
from mask2former.d2.modeling import BACKBONE_REGISTRY, Backbone
from mask2former.modeling.backbone.window_attention import (
    INIT_STD,
    Mlp,
    WindowAttention,
    from_windows,
    shifted_window_mask,
    to_windows,
)
from mask2former.modeling.layers import DropPath, Linear
from mask2former.ops.tracing import is_traced

STAGES = ("res2", "res3", "res4", "res5")


def resize_position_embedding(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize an absolute position embedding (1, C, H, W) bicubically to `size`."""
    if embedding.shape[-2:] == size:
        return embedding
    resized = F.interpolate(embedding.float(), size=size, mode="bicubic", align_corners=False)
    return resized.to(embedding.dtype)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with a norm before and a residual around it (Eq. 3)."""

    def __init__(
        self,
        *,
        dim: int,
        window_size: int,
        shifted: bool,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim=dim, window_size=window_size, proj_drop=drop, **attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape; `blocked` is the stage's `shifted_window_mask`."""
        x = x + self.drop_path(self._attend(self.norm1(x), blocked))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, blocked: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        bottom, right = -H % self.window_size, -W % self.window_size
        if is_traced() or bottom or right:  # one graph serves both
            # Padding takes part in attention, as it does in published models.
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(to_windows(x, self.window_size), blocked if self.shift else None)
        x = from_windows(windows, self.window_size, H + bottom, W + right)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :H, :W]


class PatchMerging(nn.Module):
    """Halve the resolution: concatenate 2x2 neighbours, project to twice the channels (Sec. 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        _, H, W, _ = x.shape
        if is_traced() or H % 2 or W % 2:
            x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one with shifted windows, then the step to the next."""

    def __init__(
        self,
        *,
        dim: int,
        window_size: int,
        drop_path: Sequence[float],
        downsample: bool,
        use_checkpoint: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(dim=dim, window_size=window_size, shifted=i % 2 == 1, drop_path=rate, **block)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) through the blocks; the shape stays. The caller applies `downsample`."""
        _, H, W, _ = x.shape
        height, width = H + -H % self.window_size, W + -W % self.window_size
        blocked = shifted_window_mask(height, width, self.window_size, x.device)
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, blocked, use_reentrant=False)
            else:
                x = block(x, blocked)
        return x


class PatchEmbed(nn.Module):
    """Project patches of the image to tokens (Sec. 3.1)."""

    def __init__(self, *, patch_size: int, in_channels: int, embed_dim: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if is_traced() or bottom or right:  # one graph serves both
            x = F.pad(x, (0, right, 0, bottom))
        x = x.contiguous(memory_format=torch.channels_last)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinTransformer(Backbone):
    """Swin Transformer that returns the normalised feature maps of chosen stages.

    Stages behind the last one asked for are not built, so that no parameter goes unused.

    Args:
        pretrain_img_size: image size that the absolute position embedding is learned at.
        patch_size: side of a patch in pixels; the stride of `res2`.
        in_channels: channels of the image.
        embed_dim: channels of `res2`, doubled by each later stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window in tokens.
        mlp_ratio: hidden width of the MLPs relative to their input.
        qkv_bias: give queries, keys and values a bias.
        qk_scale: factor of the dot products; None for 1 / sqrt(head width).
        drop_rate: dropout after embedding, projections and MLPs.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; earlier ones grow linearly from 0.
        ape: add an absolute position embedding, resized to the image.
        patch_norm: normalise the patch embedding.
        out_features: any of "res2", "res3", "res4", "res5".
        freeze_at: see `freeze`.
        use_checkpoint: recompute each block's activations in the backward pass, to save memory.

    Raises:
        ValueError: if the settings of the stages do not fit together.
    """

    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = STAGES,
        freeze_at: int = 0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        _check_stages(embed_dim, depths, num_heads, window_size, out_features)
        self._out_features = list(out_features)
        self._patch_size = patch_size
        self._num_features = [embed_dim << i for i in range(len(depths))]
        self._frozen: list[nn.Module] = []
        self.patch_embed = PatchEmbed(
            patch_size=patch_size, in_channels=in_channels, embed_dim=embed_dim, norm=patch_norm
        )
        self.absolute_pos_embed: nn.Parameter | None = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=INIT_STD)
        self.pos_drop = nn.Dropout(drop_rate)

        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.num_layers = 1 + max(STAGES.index(name) for name in out_features)
        self.layers = nn.ModuleList(
            SwinStage(
                dim=self._num_features[i],
                window_size=window_size,
                num_heads=num_heads[i],
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rates[i].tolist(),
                downsample=i + 1 < self.num_layers,
                use_checkpoint=use_checkpoint,
            )
            for i in range(self.num_layers)
        )
        for name in out_features:
            i = STAGES.index(name)
            self.add_module(f"norm{i}", nn.LayerNorm(self._num_features[i]))
        self.register_load_state_dict_pre_hook(_adapt_position_embedding)
        self.freeze(freeze_at)

    @property
    def size_divisibility(self) -> int:
        """Stride of `res5`. Other sizes work too, and are padded inside."""
        return self._patch_size * 8

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map of `forward`."""
        return {
            name: ShapeSpec(channels=self._num_features[i], stride=self._patch_size << i)
            for i, name in enumerate(STAGES)
            if name in self._out_features
        }

    def layer_names(self) -> list[list[str]]:
        """Names of the modules and parameters of each layer, from the image on: the embedding, then block by block.

        The step to the next stage belongs to the last block before it.
        """
        layers = [["patch_embed", "absolute_pos_embed"]]
        for i, stage in enumerate(self.layers):
            layers += [[f"layers.{i}.blocks.{j}"] for j in range(len(cast(SwinStage, stage).blocks))]
            layers[-1].append(f"layers.{i}.downsample")
        return layers

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised images (B, in_channels, H, W), of any size, to the chosen feature maps by name.

        A map of stride s has the size (ceil(H / s), ceil(W / s)), and channels last in memory.
        """
        if x.dim() != 4:
            raise ValueError(f"Swin takes a batch of shape (B, C, H, W), not {tuple(x.shape)}")
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            position = resize_position_embedding(self.absolute_pos_embed, (x.shape[1], x.shape[2]))
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        outputs = {}
        for i, (name, layer) in enumerate(zip(STAGES, self.layers, strict=False)):
            stage = cast(SwinStage, layer)
            x = stage(x)
            if name in self._out_features:
                outputs[name] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each stage by itself, with the arguments of `torch.compile`.

        With windows counted anew in every stage, sizes of the last ones are expressions of the image's size so long
        that compiling them for images of any size takes the whole model's time many times over.
        """
        for stage in self.layers:
            stage.compile(*args, **kwargs)

    def freeze(self, freeze_at: int = 0) -> SwinTransformer:
        """Make the first parts untrainable, and deterministic in training (no dropout, no stochastic depth).

        Args:
            freeze_at: 0 nothing, 1 the patch and position embedding, 2 also `res2`, up to 5, everything.
        """
        if freeze_at > 0:
            self._frozen = [self.patch_embed, self.pos_drop]
            if self.absolute_pos_embed is not None:
                self.absolute_pos_embed.requires_grad_(False)
            for i, stage in enumerate(self.layers[: freeze_at - 1]):
                self._frozen += [stage, *(m for m in [getattr(self, f"norm{i}", None)] if m is not None)]
        for module in self._frozen:
            module.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> SwinTransformer:
        """Set training mode, except in frozen parts."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def _adapt_position_embedding(module: SwinTransformer, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    name = prefix + "absolute_pos_embed"
    own, embedding = module.absolute_pos_embed, state_dict.get(name)
    if own is None or embedding is None:
        return
    if embedding.dim() == 3:  # the original classification models keep (1, H * W, C)
        side = math.isqrt(embedding.shape[1])
        embedding = embedding.transpose(1, 2).unflatten(2, (side, side))
    if embedding.shape[:2] == own.shape[:2]:
        state_dict[name] = resize_position_embedding(embedding, (own.shape[2], own.shape[3]))


def _check_stages(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    out_features: Sequence[str],
) -> None:
    if len(depths) != len(STAGES) or len(num_heads) != len(STAGES):
        raise ValueError(
            f"Swin has {len(STAGES)} stages: MODEL.SWIN.DEPTHS {list(depths)} and "
            f"NUM_HEADS {list(num_heads)} need {len(STAGES)} numbers each"
        )
    for i, heads in enumerate(num_heads):
        if (embed_dim << i) % heads:
            raise ValueError(
                f"MODEL.SWIN.NUM_HEADS[{i}] is {heads}; it must divide the stage's {embed_dim << i} channels"
            )
    if min(depths) < 1 or window_size < 1:
        raise ValueError(f"MODEL.SWIN.DEPTHS {list(depths)} and WINDOW_SIZE {window_size} must be positive")
    if not out_features or any(name not in STAGES for name in out_features):
        raise ValueError(
            f"MODEL.SWIN.OUT_FEATURES are {list(out_features)}; they must be one or more of {list(STAGES)}"
        )


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """`SwinTransformer` as a registered backbone, built by `D2SwinTransformer(cfg, input_shape)`."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read `MODEL.SWIN`; `MODEL.BACKBONE.FREEZE_AT`, 2 by default, is for ResNets, as published."""
        node = cfg.MODEL.SWIN
        return {
            "pretrain_img_size": node.PRETRAIN_IMG_SIZE,
            "patch_size": node.PATCH_SIZE,
            "in_channels": input_shape.channels,
            "embed_dim": node.EMBED_DIM,
            "depths": node.DEPTHS,
            "num_heads": node.NUM_HEADS,
            "window_size": node.WINDOW_SIZE,
            "mlp_ratio": node.MLP_RATIO,
            "qkv_bias": node.QKV_BIAS,
            "qk_scale": node.QK_SCALE,
            "drop_rate": node.DROP_RATE,
            "attn_drop_rate": node.ATTN_DROP_RATE,
            "drop_path_rate": node.DROP_PATH_RATE,
            "ape": node.APE,
            "patch_norm": node.PATCH_NORM,
            "out_features": node.OUT_FEATURES,
            "use_checkpoint": cfg.MODEL.ACTIVATION_CHECKPOINTING,
        }
