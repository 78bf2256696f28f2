"""The transformer decoder of Mask2Former: masked attention over feature maps of three scales (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.layers import Conv2d
from mask2former.ops.cpu import is_eager, linear

from ..build import TRANSFORMER_DECODER_REGISTRY
from ..layers import MLP, Linear, c2_xavier_fill
from ..position_encoding import sine_tokens
from ..version_1 import load_version_1
from .layers import CrossAttentionLayer, FFNLayer, SelfAttentionLayer

# B batch, Q queries, C classes, E embedding width, h and w size of a feature map, H and W size of the masks


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Refine queries into classes and masks; layer i reads level i modulo their number.

    Args:
        in_channels: channels of the feature maps.
        mask_classification: must be True: this decoder predicts a class for each mask.
        num_classes: C, "no object" not counted.
        hidden_dim: E.
        num_queries: Q.
        nheads: attention heads.
        dim_feedforward: width of the feed-forward networks.
        dec_layers: number of layers.
        pre_norm: LayerNorm before instead of after each attention and feed-forward network.
        mask_dim: channels of the per-pixel embeddings.
        enforce_input_project: project the feature maps even when they have `hidden_dim` channels.
        num_levels: number of feature maps.

    Raises:
        ValueError: if `mask_classification` is False or `dec_layers` is negative.
    """

    _version = 2

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
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
        num_levels: int = 3,
    ) -> None:
        super().__init__()
        if not mask_classification:
            raise ValueError(
                "MultiScaleMaskedTransformerDecoder predicts masks with classes, nothing else; per-pixel heads need "
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME 'StandardTransformerDecoder'"
            )
        if dec_layers < 0:
            raise ValueError("MODEL.MASK_FORMER.DEC_LAYERS counts the prediction of the learned queries: at least 1")
        self.num_layers = dec_layers
        self.num_levels = num_levels
        attention: dict[str, Any] = {"embed_dim": hidden_dim, "num_heads": nheads, "pre_norm": pre_norm}
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(**attention) for _ in range(dec_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(**attention) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(embed_dim=hidden_dim, dim_feedforward=dim_feedforward, pre_norm=pre_norm)
            for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(num_levels, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            _projection(in_channels, hidden_dim) if project else nn.Identity() for _ in range(num_levels)
        )
        self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, num_layers=3)
        self.register_load_state_dict_pre_hook(load_version_1)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        if node.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {node.TRANSFORMER_IN_FEATURE!r}, one map, but "
                "MultiScaleMaskedTransformerDecoder reads several: set it to 'multi_scale_pixel_decoder'"
            )
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "nheads": node.NHEADS,
            "dim_feedforward": node.DIM_FEEDFORWARD,
            "dec_layers": node.DEC_LAYERS - 1,  # the learned queries' own prediction is counted there
            "pre_norm": node.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": node.ENFORCE_INPUT_PROJ,
            "num_levels": node.NUM_FEATURE_LEVELS,
        }

    def forward(
        self,
        x: Sequence[Tensor],
        mask_features: Tensor,
        *,
        query_features: Tensor | None = None,
        query_positions: Tensor | None = None,
    ) -> dict[str, Any]:
        """Predict from the pixel decoder's maps.

        Args:
            x: `num_levels` maps (B, in_channels, h, w), lowest resolution first.
            mask_features: (B, mask_dim, H, W).
            query_features: (Q, E) or (B, Q, E), what queries start from in place of the learned ones; Q may be another.
            query_positions: likewise, their position embeddings.

        Returns:
            `pred_logits` (B, Q, C+1), `pred_masks` (B, Q, H, W) logits, `mask_embeddings` (B, Q, mask_dim), which
            the masks are products of with `mask_features`, also there, and `aux_outputs`, in training a list of
            dicts with the first three for every earlier prediction, the learned queries' first, else an empty list.

        Raises:
            ValueError: if there are not `num_levels` maps.
        """
        if len(x) != self.num_levels:
            raise ValueError(
                f"the decoder was built for {self.num_levels} feature maps (MODEL.MASK_FORMER.NUM_FEATURE_LEVELS), "
                f"not {len(x)}"
            )
        memory = [self._embed_level(level, feature) for level, feature in enumerate(x)]
        resized = [resize(mask_features.detach(), feature.shape[-2:]) for feature in x]
        position = self.query_embed.weight if query_positions is None else query_positions
        queries = self.query_feat.weight if query_features is None else query_features
        queries = queries.expand(mask_features.shape[0], -1, -1)
        states = [self._describe(queries)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, ffn) in enumerate(layers):
            level = i % self.num_levels
            # Resizing the features instead of the masks made with them is the same, since both steps are linear, and
            # there are fewer features than masks.
            mask = attention_mask(_masks(states[-1][1].detach(), resized[level]))
            queries = ffn(self_attention(cross_attention(queries, position, *memory[level], mask), position))
            states.append(self._describe(queries))
        return self._predict(states if self.training else states[-1:], mask_features)

    def _embed_level(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, h*w, E) of a map: only keys carry positions."""
        feature = self.input_proj[level](feature)
        _, channels, height, width = feature.shape
        value = feature.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return value + sine_tokens(height, width, channels, feature.device), value

    def _describe(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised queries (B, Q, E) and the mask embeddings (B, Q, mask_dim) made of them.

        Once, with gradient: autocast keeps the weights that it has cast, and PyTorch up to 2.10 would keep them
        without gradient if they were first used where none is wanted.
        """
        normalised = self.decoder_norm(queries)
        return normalised, self.mask_embed(normalised)

    def _predict(self, states: Sequence[tuple[Tensor, Tensor]], mask_features: Tensor) -> dict[str, Any]:
        """Return the prediction of the last of several states of the queries, and in it those of the earlier ones."""
        normalised, embeddings = (torch.cat(parts, dim=1) for parts in zip(*states, strict=True))
        mask_features = mask_features.to(embeddings.dtype)  # once, and not for each user
        values = (self.class_embed(normalised), _masks(embeddings, mask_features), embeddings)
        names = ("pred_logits", "pred_masks", "mask_embeddings")
        each = zip(*(value.chunk(len(states), dim=1) for value in values), strict=True)
        *earlier, last = [dict(zip(names, prediction, strict=True)) for prediction in each]
        return {**last, "mask_features": mask_features, "aux_outputs": earlier}


def attention_mask(mask_logits: Tensor) -> Tensor:
    """Return where each query may look in the next layer (Eq. 3): inside its own mask.

    A query whose mask is empty looks everywhere, since attention to nothing is undefined.

    Args:
        mask_logits: (B, Q, h, w), at the size of the feature map of that layer.

    Returns:
        bool (B, 1, Q, h * w), the same for all heads.
    """
    inside = mask_logits.flatten(2) >= 0
    return (inside | ~inside.any(dim=2, keepdim=True)).unsqueeze(1)


def _masks(embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Multiply (B, Q, mask_dim) with (B, mask_dim, h, w) to mask logits (B, Q, h, w)."""
    if not is_eager(mask_features):
        return torch.einsum("bqc,bchw->bqhw", embeddings, mask_features)
    images = zip(embeddings, mask_features.flatten(2).transpose(1, 2), strict=True)
    return torch.stack([linear(*image) for image in images]).unflatten(2, mask_features.shape[-2:])


def resize(features: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize (B, C, H, W) bilinearly to `size` (h, w)."""
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


def _projection(in_channels: int, out_channels: int) -> nn.Module:
    conv = Conv2d(in_channels, out_channels, kernel_size=1)
    c2_xavier_fill(conv)
    return conv
