"""Metrics: what turns the outputs of a model into numbers."""

from mask2former.evaluation.build import EVALUATOR_REGISTRY, build_evaluators
from mask2former.evaluation.engine import flatten_results, inference_on_dataset, print_results
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.evaluation.panoptic import COCOPanopticEvaluator, panoptic_quality, panoptic_statistics
from mask2former.evaluation.semantic import SemSegEvaluator, confusion_matrix, semantic_metrics

__all__ = [
    "EVALUATOR_REGISTRY",
    "COCOPanopticEvaluator",
    "InstanceSegEvaluator",
    "SemSegEvaluator",
    "build_evaluators",
    "confusion_matrix",
    "flatten_results",
    "inference_on_dataset",
    "panoptic_quality",
    "panoptic_statistics",
    "print_results",
    "semantic_metrics",
]
