"""Mask2Former: universal image segmentation by masked-attention mask classification (Cheng et al., CVPR 2022).

Importing this package registers its components with Detectron2's registries; see `mask2former.d2`.
"""

from . import data, evaluation, model_zoo, modeling
from .config import add_maskformer2_config, get_cfg
from .data import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from .data.datasets import register_coco_instances, register_coco_panoptic, register_images, register_semantic
from .engine.predictor import Predictor
from .engine.test_time_augmentation import SemanticSegmentorWithTTA
from .evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    InstanceSegEvaluator,
    SemSegEvaluator,
)
from .modeling import MaskFormer
from .version import __version__ as __version__

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticEvaluator",
    "COCOPanopticNewBaselineDatasetMapper",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "InstanceSegEvaluator",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "Predictor",
    "SemSegEvaluator",
    "SemanticSegmentorWithTTA",
    "add_maskformer2_config",
    "data",
    "evaluation",
    "get_cfg",
    "model_zoo",
    "modeling",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_images",
    "register_semantic",
]
