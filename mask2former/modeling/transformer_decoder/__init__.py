"""Transformer decoders, registered in `TRANSFORMER_DECODER_REGISTRY`."""

from .multi_scale_masked import MultiScaleMaskedTransformerDecoder
from .standard import StandardTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder", "StandardTransformerDecoder"]
