"""Transformer decoders, registered in `TRANSFORMER_DECODER_REGISTRY`."""

from .multi_scale_masked import MultiScaleMaskedTransformerDecoder

__all__ = ["MultiScaleMaskedTransformerDecoder"]
