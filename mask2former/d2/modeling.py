"""Registries and builders of models, backbones and segmentation heads."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        build_backbone,
        build_model,
        build_sem_seg_head,
        sem_seg_postprocess,
    )
    from mask2former.d2.bundled.semantic_segmentor import SemanticSegmentor
else:
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        SemanticSegmentor,
        build_backbone,
        build_model,
        build_sem_seg_head,
    )
    from detectron2.modeling.postprocessing import (
        sem_seg_postprocess,
    )

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "SemanticSegmentor",
    "build_backbone",
    "build_model",
    "build_sem_seg_head",
    "sem_seg_postprocess",
]
