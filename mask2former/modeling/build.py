"""The registries of this project that Detectron2 does not have, and how their objects are built.

Backbones, pixel decoders, heads and meta-architectures live in Detectron2's own registries
(`mask2former.d2.modeling`); pixel decoders are looked up among its semantic segmentation heads, as in published
configs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from mask2former.d2.config import CfgNode
from mask2former.d2.layers import ShapeSpec
from mask2former.d2.modeling import SEM_SEG_HEADS_REGISTRY
from mask2former.d2.registry import Registry

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders, which turn pixel decoder outputs into a set of predictions.

A registered object is called with `(cfg, in_channels, mask_classification)` and returns a module, which is called
with `(features, mask_features)` and returns a dict with `pred_logits` (B, Q, C+1), `pred_masks` (B, Q, H, W) and
`aux_outputs`, a list of dicts with the first two, in training one for each earlier prediction.
"""

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
Training losses.

A registered object is called with `(cfg)` and returns a module, which is called with `(outputs, targets)`: what the
head returns, and for each image a dict with `labels` int64 (T,) and `masks` `PackedMasks` of the batch's size, whose
`tensor` is bool (T, H, W). It returns a dict of losses, whose sum is minimised.

A criterion with a `weight_dict`, as in the published code, is served as there: `masks` are bool tensors, each loss is
multiplied by the weight of its name, and losses without one are left out.
"""

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers, which say which query shall predict which target.

A registered object is called with `(cfg)` and returns a module, which is called with `(predictions, targets)`: P dicts
with `pred_logits` (B, Q, C+1), `pred_masks` (B, Q, h, w) and what else the decoder gives, and B targets as those of a
criterion. It returns, for each prediction, for each image, a pair of int64 tensors on the CPU, queries and targets:
one to one, one to many (a target may have several queries, a query at most one target), or whatever a decoder's extra
queries ask for. It may treat each prediction as it likes: they may differ in number of queries and size of masks.
"""


class PixelDecoderOutput(NamedTuple):
    """What a pixel decoder's `forward_features` returns."""

    mask_features: Tensor
    """(B, MASK_DIM, H/4, W/4): per-pixel embeddings."""
    encoder_features: Tensor | None
    """The encoder's map of the lowest resolution, or None if there is no encoder."""
    multi_scale_features: list[Tensor]
    """Maps (B, CONVS_DIM, h, w) for the transformer decoder, lowest resolution first."""


class PixelDecoder(Protocol):
    """A module that turns backbone features into maps for the transformer decoder and per-pixel embeddings."""

    def forward_features(self, features: dict[str, Tensor]) -> PixelDecoderOutput:
        """Decode the backbone's maps, each (B, channels, H/stride, W/stride)."""
        ...


def build_transformer_decoder(cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> nn.Module:
    """Build the decoder `MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME` for feature maps with `in_channels`."""
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    return TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, in_channels, mask_classification)


def build_pixel_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> PixelDecoder:
    """Build the pixel decoder `MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` for the backbone's `input_shape`.

    Raises:
        TypeError: if it has no `forward_features`.
    """
    name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    decoder = SEM_SEG_HEADS_REGISTRY.get(name)(cfg, input_shape)
    if not callable(getattr(decoder, "forward_features", None)):
        raise TypeError(
            f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME {name!r} is no pixel decoder: it has no `forward_features`"
        )
    return decoder


def build_criterion(cfg: CfgNode) -> nn.Module:
    """Build the criterion `MODEL.MASK_FORMER.CRITERION_NAME`."""
    return CRITERION_REGISTRY.get(cfg.MODEL.MASK_FORMER.CRITERION_NAME)(cfg)


def build_matcher(cfg: CfgNode) -> nn.Module:
    """Build the matcher `MODEL.MASK_FORMER.MATCHER_NAME`."""
    return MATCHER_REGISTRY.get(cfg.MODEL.MASK_FORMER.MATCHER_NAME)(cfg)
