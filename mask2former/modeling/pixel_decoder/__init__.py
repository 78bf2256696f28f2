"""Pixel decoders, registered among the semantic segmentation heads."""

from .msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["MSDeformAttnPixelDecoder"]
