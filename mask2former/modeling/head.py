"""The segmentation head: a pixel decoder and a transformer decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import ShapeSpec
from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY

from .build import PixelDecoder, PixelDecoderOutput, build_pixel_decoder, build_transformer_decoder
from .version_1 import load_version_1

MULTI_SCALE = "multi_scale_pixel_decoder"


def decode_pixels(pixel_decoder: PixelDecoder, features: dict[str, Tensor], *, float32: bool) -> PixelDecoderOutput:
    """Run a pixel decoder on the backbone's `features`; with `float32` in float32 also under autocast, as published."""
    device = next(iter(features.values())).device.type
    if not (float32 and torch.is_autocast_enabled(device)):
        return pixel_decoder.forward_features(features)
    with torch.autocast(device, enabled=False):
        return pixel_decoder.forward_features({name: feature.float() for name, feature in features.items()})


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features to a set of (class, mask) predictions.

    Args:
        pixel_decoder: has `forward_features(features) -> PixelDecoderOutput` (or a plain tuple of the same).
        transformer_predictor: called with (features, mask_features).
        transformer_in_feature: what the transformer decoder reads: "multi_scale_pixel_decoder" (the maps of several
            scales), "transformer_encoder" (the pixel decoder's encoder), "pixel_embedding" (the per-pixel
            embeddings), or the name of a backbone feature.
        float32_pixel_decoder: run the pixel decoder in float32 also under autocast.
    """

    _version = 2

    mask_classification = True
    """Whether the transformer decoder, built from a config, gives a class to each mask."""

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: PixelDecoder,
        transformer_predictor: nn.Module,
        transformer_in_feature: str,
        float32_pixel_decoder: bool = False,
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = transformer_predictor
        self.transformer_in_feature = transformer_in_feature
        self.float32_pixel_decoder = float32_pixel_decoder
        self.register_load_state_dict_pre_hook(load_version_1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        if in_feature in (MULTI_SCALE, "transformer_encoder"):
            in_channels = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
        elif in_feature == "pixel_embedding":
            in_channels = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
        elif in_feature in input_shape:
            in_channels = input_shape[in_feature].channels
        else:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE {in_feature!r} is none of {MULTI_SCALE!r}, "
                f"'transformer_encoder', 'pixel_embedding' and the backbone's {list(input_shape)}"
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "transformer_predictor": build_transformer_decoder(cfg, in_channels, cls.mask_classification),
            "transformer_in_feature": in_feature,
            "float32_pixel_decoder": cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_FLOAT32,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Predict; see `MultiScaleMaskedTransformerDecoder.forward` for what is returned."""
        decoded = decode_pixels(self.pixel_decoder, features, float32=self.float32_pixel_decoder)
        mask_features, encoder_features, multi_scale_features = decoded
        if self.transformer_in_feature == MULTI_SCALE:
            return self.predictor(multi_scale_features, mask_features)
        if self.transformer_in_feature == "transformer_encoder":
            if encoder_features is None:
                raise ValueError(
                    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'transformer_encoder', but the pixel decoder "
                    f"{type(self.pixel_decoder).__name__} has no encoder"
                )
            return self.predictor(encoder_features, mask_features)
        if self.transformer_in_feature == "pixel_embedding":
            return self.predictor(mask_features, mask_features)
        return self.predictor(features[self.transformer_in_feature], mask_features)
