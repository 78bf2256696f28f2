"""The pixel decoders of MaskFormer (Cheng et al., NeurIPS 2021): a feature pyramid, alone or above an encoder."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import Conv2d, ShapeSpec
from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY

from ..build import PixelDecoderOutput
from ..layers import c2_xavier_fill
from ..transformer import TransformerEncoder, flatten_map
from .layers import channels_of, lateral_convolution, output_convolution, select_features, stride_of


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """A feature pyramid network (Lin et al., CVPR 2017), as in MaskFormer's Sec. 4.1.

    Args:
        input_shape: channels and stride of each backbone feature in use.
        conv_dim: channels inside.
        mask_dim: channels of the per-pixel embeddings.
        norm: normalisation of the convolutions.
        common_stride: stride of the per-pixel embeddings, which is that of the finest feature.
        num_decoder_levels: maps for a transformer decoder that reads several, the coarsest.

    Raises:
        ValueError: if there is no feature, or the finest one has another stride.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        common_stride: int,
        num_decoder_levels: int = 3,
    ) -> None:
        super().__init__()
        self.num_decoder_levels = num_decoder_levels
        if not input_shape:
            raise ValueError("MODEL.SEM_SEG_HEAD.IN_FEATURES is empty: the pixel decoder has nothing to read")
        self.in_features = sorted(input_shape, key=lambda name: stride_of(input_shape, name))
        finest, coarsest = self.in_features[0], self.in_features[-1]
        if stride_of(input_shape, finest) != common_stride:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE is {common_stride}, but {type(self).__name__} decodes to the stride "
                f"{stride_of(input_shape, finest)} of {finest!r}, the finest of MODEL.SEM_SEG_HEAD.IN_FEATURES"
            )
        # Published checkpoints number the levels from 1, the finest.
        for number, name in enumerate(self.in_features, start=1):
            channels = channels_of(input_shape, name)
            if name != coarsest:
                lateral = lateral_convolution(channels, conv_dim, norm)
                c2_xavier_fill(lateral)
                self.add_module(f"adapter_{number}", lateral)
                channels = conv_dim
            output = output_convolution(channels, conv_dim, norm)
            c2_xavier_fill(output)
            self.add_module(f"layer_{number}", output)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": select_features(cfg, input_shape),
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "num_decoder_levels": cfg.MODEL.MASK_FORMER.NUM_FEATURE_LEVELS,
        }

    def forward_features(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """Decode the backbone's maps, each (B, channels, H/stride, W/stride)."""
        number = len(self.in_features)
        maps = [getattr(self, f"layer_{number}")(features[self.in_features[-1]])]
        for name in reversed(self.in_features[:-1]):
            number -= 1
            lateral = getattr(self, f"adapter_{number}")(features[name])
            upsampled = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="nearest")
            maps.append(getattr(self, f"layer_{number}")(lateral + upsampled))
        return PixelDecoderOutput(self.mask_features(maps[-1]), None, maps[: self.num_decoder_levels])


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """The feature pyramid above a transformer encoder that reads the coarsest feature.

    Args:
        input_shape: as `BasePixelDecoder`, like all arguments that are not named here.
        transformer_dropout: dropout of the encoder.
        transformer_nheads: attention heads of the encoder.
        transformer_dim_feedforward: width of the encoder's feed-forward networks.
        transformer_enc_layers: layers of the encoder.
        transformer_pre_norm: LayerNorm before instead of after each attention and feed-forward network.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        transformer_pre_norm: bool,
        conv_dim: int,
        **pyramid: Any,
    ) -> None:
        coarsest = max(input_shape, key=lambda name: stride_of(input_shape, name), default="")
        encoded = {coarsest: ShapeSpec(channels=conv_dim, stride=input_shape[coarsest].stride)} if coarsest else {}
        super().__init__({**input_shape, **encoded}, conv_dim=conv_dim, **pyramid)
        self.input_proj = Conv2d(channels_of(input_shape, coarsest), conv_dim, kernel_size=1)
        c2_xavier_fill(self.input_proj)
        encoder = TransformerEncoder(
            embed_dim=conv_dim,
            num_heads=transformer_nheads,
            dim_feedforward=transformer_dim_feedforward,
            num_layers=transformer_enc_layers,
            dropout=transformer_dropout,
            pre_norm=transformer_pre_norm,
        )
        self.transformer = nn.ModuleDict({"encoder": encoder})

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {
            **super().from_config(cfg, input_shape),
            "transformer_dropout": node.DROPOUT,
            "transformer_nheads": node.NHEADS,
            "transformer_dim_feedforward": node.DIM_FEEDFORWARD,
            "transformer_enc_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "transformer_pre_norm": node.PRE_NORM,
        }

    def forward_features(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """Decode the backbone's maps, each (B, channels, H/stride, W/stride)."""
        coarsest = self.in_features[-1]
        projected = self.input_proj(features[coarsest])
        encoded = self.transformer["encoder"](*flatten_map(projected)).transpose(1, 2).reshape(projected.shape)
        return super().forward_features({**features, coarsest: encoded})._replace(encoder_features=encoded)
