"""The model. Importing this package registers its components with Detectron2's registries."""

from . import backbone, pixel_decoder, transformer_decoder
from .build import (
    CRITERION_REGISTRY,
    MATCHER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    build_criterion,
    build_matcher,
    build_pixel_decoder,
    build_transformer_decoder,
)
from .criterion import SetCriterion
from .head import MaskFormerHead
from .mask_former import MaskFormer
from .masks import PackedMasks
from .matcher import HungarianMatcher
from .per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead

__all__ = [
    "CRITERION_REGISTRY",
    "MATCHER_REGISTRY",
    "TRANSFORMER_DECODER_REGISTRY",
    "HungarianMatcher",
    "MaskFormer",
    "MaskFormerHead",
    "PackedMasks",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "SetCriterion",
    "backbone",
    "build_criterion",
    "build_matcher",
    "build_pixel_decoder",
    "build_transformer_decoder",
    "pixel_decoder",
    "transformer_decoder",
]
