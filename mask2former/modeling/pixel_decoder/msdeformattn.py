"""The pixel decoder of Mask2Former: a multi-scale deformable attention encoder with one FPN step on top."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import Conv2d, ShapeSpec
from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY

from ..build import PixelDecoderOutput
from ..layers import c2_xavier_fill
from .deformable_encoder import MSDeformAttnTransformerEncoder
from .layers import channels_of, lateral_convolution, output_convolution, select_features, stride_of

logger = logging.getLogger(__name__)


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Pixel decoder of the paper (Sec. 4.1, "MSDeformAttn").

    Args:
        input_shape: channels and stride of each backbone feature in use.
        transformer_in_features: names of those that the encoder sees; the finer ones meet it in the FPN.
        transformer_dropout: dropout of the encoder.
        transformer_nheads: attention heads of the encoder.
        transformer_dim_feedforward: width of the encoder's feed-forward networks.
        transformer_enc_layers: layers of the encoder.
        transformer_num_points: points that a head looks at in each level.
        conv_dim: channels inside, a multiple of 32.
        mask_dim: channels of the per-pixel embeddings.
        norm: normalisation of the FPN's convolutions.
        common_stride: stride of the per-pixel embeddings.
        num_decoder_levels: maps that the transformer decoder reads in turn, the coarsest ones (Sec. 3.2.2: "round
            robin" over strides 32, 16 and 8).
        use_checkpoint: recompute activations of the encoder in the backward pass, to save memory.

    Raises:
        ValueError: if a feature is missing or there are fewer maps than the transformer decoder reads.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_in_features: list[str],
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        transformer_num_points: int,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        common_stride: int,
        num_decoder_levels: int = 3,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: stride_of(input_shape, name))
        if not transformer_in_features or set(transformer_in_features) - set(by_stride):
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES must name some of "
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES {by_stride}, not {transformer_in_features}"
            )
        # Lowest resolution first, as published checkpoints number them.
        self.transformer_in_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        self.input_proj = nn.ModuleList(
            _input_projection(channels_of(input_shape, name), conv_dim) for name in self.transformer_in_features
        )
        self.transformer = MSDeformAttnTransformerEncoder(
            embed_dim=conv_dim,
            dim_feedforward=transformer_dim_feedforward,
            num_layers=transformer_enc_layers,
            num_heads=transformer_nheads,
            num_levels=len(self.transformer_in_features),
            num_points=transformer_num_points,
            dropout=transformer_dropout,
            use_checkpoint=use_checkpoint,
        )
        self.mask_dim = mask_dim
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        c2_xavier_fill(self.mask_features)

        finest = stride_of(input_shape, self.transformer_in_features[-1])
        self.fpn_features = by_stride[: max(0, round(math.log2(finest / common_stride)))][::-1]
        for name in self.fpn_features:
            number = by_stride.index(name) + 1
            lateral = lateral_convolution(channels_of(input_shape, name), conv_dim, norm)
            output = output_convolution(conv_dim, conv_dim, norm)
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.add_module(f"adapter_{number}", lateral)
            self.add_module(f"layer_{number}", output)
        self._fpn_numbers = [by_stride.index(name) + 1 for name in self.fpn_features]
        self.num_decoder_levels = num_decoder_levels
        names = self.transformer_in_features + self.fpn_features
        if num_decoder_levels > len(names):
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_FEATURE_LEVELS is {num_decoder_levels}, but MSDeformAttnPixelDecoder makes "
                f"{len(names)} maps, of {names}: name more in "
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        if head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS != node.NHEADS:
            logger.warning(
                "The deformable encoder has %d attention heads, as "
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS says; the published one would have "
                "MODEL.MASK_FORMER.NHEADS, %d",
                head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
                node.NHEADS,
            )
        return {
            "input_shape": select_features(cfg, input_shape),
            "transformer_in_features": list(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES),
            "transformer_dropout": node.DROPOUT,
            "transformer_nheads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "transformer_dim_feedforward": head.TRANSFORMER_ENC_DIM_FEEDFORWARD,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "num_decoder_levels": node.NUM_FEATURE_LEVELS,
            "use_checkpoint": cfg.MODEL.ACTIVATION_CHECKPOINTING,
        }

    def forward_features(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """Decode the backbone's maps, each (B, channels, H/stride, W/stride)."""
        projected = [
            project(features[name]) for name, project in zip(self.transformer_in_features, self.input_proj, strict=True)
        ]
        maps = self.transformer(projected)
        encoded = maps[0]
        for name, number in zip(self.fpn_features, self._fpn_numbers, strict=True):
            lateral = getattr(self, f"adapter_{number}")(features[name])
            upsampled = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(getattr(self, f"layer_{number}")(lateral.add_(upsampled)))
        return PixelDecoderOutput(self.mask_features(maps[-1]), encoded, maps[: self.num_decoder_levels])


def _input_projection(in_channels: int, conv_dim: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, conv_dim, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # there is one
    return nn.Sequential(conv, nn.GroupNorm(32, conv_dim))
