"""Mask2Former: universal image segmentation by masked-attention mask classification (Cheng et al., CVPR 2022).

Importing this package registers its components with Detectron2's registries; see `mask2former.d2`.
"""

from . import data, evaluation, modeling
from .config import add_maskformer2_config, get_cfg
from .data import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from .data.datasets import register_coco_instances, register_coco_panoptic
from .evaluation import InstanceSegEvaluator
from .modeling import MaskFormer

__version__ = "0.1.0"

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "add_maskformer2_config",
    "data",
    "evaluation",
    "get_cfg",
    "modeling",
    "register_coco_instances",
    "register_coco_panoptic",
]
