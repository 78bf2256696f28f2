"""Registries and builders of models, backbones and segmentation heads."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "SemanticSegmentor",
    "build_backbone",
    "build_model",
    "build_sem_seg_head",
]

if TYPE_CHECKING:
    from mask2former.d2.bundled.modeling import *
    from mask2former.d2.bundled.semantic_segmentor import *
else:
    globals().update(objects(__all__, bundled=("modeling", "semantic_segmentor"), official="modeling"))
