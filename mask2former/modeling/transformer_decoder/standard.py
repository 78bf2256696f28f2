"""The transformer decoder of MaskFormer (Cheng et al., NeurIPS 2021, Sec. 3.3): DETR's, over one feature map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import Conv2d

from ..build import TRANSFORMER_DECODER_REGISTRY
from ..layers import MLP, Linear, c2_xavier_fill
from ..transformer import TransformerDecoder, TransformerEncoder, flatten_map

# B batch, Q queries, C classes, E embedding width, h and w size of the feature map, H and W size of the masks


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """Turn learned positions into classes and masks: queries start from zero, each layer reads the whole map.

    Args:
        in_channels: channels of the feature map.
        mask_classification: predict a class for each mask; otherwise masks alone.
        num_classes: C, "no object" not counted.
        hidden_dim: E, a multiple of 4.
        num_queries: Q.
        nheads: attention heads.
        dim_feedforward: width of the feed-forward networks.
        enc_layers: number of layers of the encoder, which the feature map goes through first.
        dec_layers: number of layers of the decoder.
        dropout: probability, in training.
        pre_norm: LayerNorm before instead of after each attention and feed-forward network.
        deep_supervision: give the predictions of the earlier layers too.
        mask_dim: channels of the per-pixel embeddings.
        enforce_input_project: project the feature map even when it has `hidden_dim` channels.

    Raises:
        ValueError: if `dec_layers` is less than 1 or `enc_layers` is negative.
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        dropout: float,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        super().__init__()
        if dec_layers < 1 or enc_layers < 0:
            raise ValueError(
                "StandardTransformerDecoder needs MODEL.MASK_FORMER.DEC_LAYERS of at least 1 and ENC_LAYERS of at "
                f"least 0, not {dec_layers} and {enc_layers}"
            )
        self.mask_classification = mask_classification
        self.deep_supervision = deep_supervision
        layers: dict[str, Any] = {
            "embed_dim": hidden_dim,
            "num_heads": nheads,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.transformer = nn.ModuleDict(
            {
                "encoder": TransformerEncoder(num_layers=enc_layers, **layers),
                "decoder": TransformerDecoder(num_layers=dec_layers, **layers),
            }
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj: nn.Module = nn.Identity()
        if in_channels != hidden_dim or enforce_input_project:
            self.input_proj = Conv2d(in_channels, hidden_dim, kernel_size=1)
            c2_xavier_fill(self.input_proj)
        if mask_classification:
            self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, num_layers=3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        if node.TRANSFORMER_IN_FEATURE == "multi_scale_pixel_decoder":
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'multi_scale_pixel_decoder', but "
                "StandardTransformerDecoder reads one map: set it to 'transformer_encoder', 'pixel_embedding' or the "
                "name of a backbone feature, such as 'res5'"
            )
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "nheads": node.NHEADS,
            "dim_feedforward": node.DIM_FEEDFORWARD,
            "enc_layers": node.ENC_LAYERS,
            "dec_layers": node.DEC_LAYERS,
            "dropout": node.DROPOUT,
            "pre_norm": node.PRE_NORM,
            "deep_supervision": node.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": node.ENFORCE_INPUT_PROJ,
        }

    def forward(self, x: Tensor, mask_features: Tensor) -> dict[str, Any]:
        """Predict from a feature map.

        Args:
            x: (B, in_channels, h, w).
            mask_features: (B, mask_dim, H, W).

        Returns:
            `pred_logits` (B, Q, C+1), only with `mask_classification`; `pred_masks` (B, Q, H, W) logits; and
            `aux_outputs`, a list of dicts with these for each earlier layer, empty without `deep_supervision`.
        """
        value, key_position = flatten_map(self.input_proj(x))
        value = self.transformer["encoder"](value, key_position)
        position = self.query_embed.weight.expand(len(x), -1, -1)
        layers = self.transformer["decoder"](torch.zeros_like(position), position, value + key_position, value)
        predictions = [self._predict(y, mask_features) for y in (layers if self.deep_supervision else layers[-1:])]
        return {**predictions[-1], "aux_outputs": predictions[:-1]}

    def _predict(self, queries: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)
        if not self.mask_classification:
            return {"pred_masks": masks}
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}
