"""Metrics: what turns the outputs of a model into numbers."""

from mask2former.evaluation.boundary import boundary_iou, mask_boundary
from mask2former.evaluation.build import EVALUATOR_REGISTRY, build_evaluators, needs
from mask2former.evaluation.cityscapes_instance import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes_semantic import CityscapesSemSegEvaluator
from mask2former.evaluation.engine import flatten_results, inference_on_dataset, print_results
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.evaluation.panoptic import COCOPanopticEvaluator, panoptic_quality, panoptic_statistics
from mask2former.evaluation.semantic import SemSegEvaluator, confusion_matrix, semantic_metrics

__all__ = [
    "EVALUATOR_REGISTRY",
    "COCOPanopticEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "InstanceSegEvaluator",
    "SemSegEvaluator",
    "boundary_iou",
    "build_evaluators",
    "confusion_matrix",
    "flatten_results",
    "inference_on_dataset",
    "mask_boundary",
    "needs",
    "panoptic_quality",
    "panoptic_statistics",
    "print_results",
    "semantic_metrics",
]
