"""Mask2Former: universal image segmentation by masked-attention mask classification (Cheng et al., CVPR 2022).

Importing this package registers its components with Detectron2's registries; see `mask2former.d2`.
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .predict.predictor import Predictor
    from .predict.result import Result

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
    "Result",
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


def __getattr__(name: str) -> Any:
    """What only those need who predict, imported when it is asked for."""
    if name not in ("Predictor", "Result"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .predict import predictor, result

    return predictor.Predictor if name == "Predictor" else result.Result
