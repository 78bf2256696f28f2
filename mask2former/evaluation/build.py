"""Which evaluators a data set gets."""

from collections.abc import Callable
from typing import Any

from mask2former.d2.config import CfgNode
from mask2former.d2.data import MetadataCatalog
from mask2former.d2.evaluation import DatasetEvaluator, DatasetEvaluators
from mask2former.d2.registry import Registry
from mask2former.evaluation.cityscapes_instance import CityscapesInstanceEvaluator
from mask2former.evaluation.cityscapes_semantic import CityscapesSemSegEvaluator
from mask2former.evaluation.instance import InstanceSegEvaluator
from mask2former.evaluation.panoptic import COCOPanopticEvaluator
from mask2former.evaluation.pictures import PictureEvaluator
from mask2former.evaluation.semantic import SemSegEvaluator

EVALUATOR_REGISTRY: Any = Registry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
What scores a data set, by the `evaluator_type` of its metadata, which is the name of the registered function.

Called as `function(cfg, dataset_name, output_dir)`; returns a list of `DatasetEvaluator`. `output_dir` is a
folder for predictions, or None when they are not wanted. `needs` tells what must be there beside it.
"""

_ANY = ("PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON")
Build = Callable[[CfgNode, str, str | None], list[DatasetEvaluator]]


def needs(class_list: str, *outputs: str) -> Callable[[Build], Build]:
    """Says of a registered function what the check before the first step asks for.

    Args:
        class_list: the metadata that lists the classes of the model, `stuff_classes` or `thing_classes`.
        outputs: of these of SEMANTIC_ON, INSTANCE_ON, PANOPTIC_ON at least one must be True.
    """

    def mark(function: Build) -> Build:
        function.class_list, function.outputs = class_list, outputs  # type: ignore[attr-defined]
        return function

    return mark


def find_builder(dataset_name: str) -> Any:
    """What is registered for the `evaluator_type` of a data set, or None: trainers may bring their own evaluator."""
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    return EVALUATOR_REGISTRY.get(evaluator_type) if evaluator_type in EVALUATOR_REGISTRY else None


def check_outputs(cfg: CfgNode, dataset_name: str) -> None:
    """Raises `ValueError` if the config turns on no output that the evaluators of a data set read."""
    outputs = getattr(find_builder(dataset_name), "outputs", ())
    if outputs and not any(cfg.MODEL.MASK_FORMER.TEST[output] for output in outputs):
        raise ValueError(
            f"data set {dataset_name!r} cannot be scored while MODEL.MASK_FORMER.TEST.{' and '.join(outputs)} "
            f"{'is' if len(outputs) == 1 else 'are'} False: set {'it' if len(outputs) == 1 else 'one'} True, or change "
            "DATASETS.TEST"
        )


def build_evaluators(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluators:
    """The evaluators of a registered data set; with `output_dir`, they also write predictions and pictures there.

    Of a data set without labels they write alone.

    Raises:
        KeyError: the data set's `evaluator_type` is not set, or nothing is registered for it.
        ValueError: the config turns on no output that could be scored.
    """
    builder = find_builder(dataset_name)
    if builder is None:
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        known = ", ".join(sorted(name for name, _ in EVALUATOR_REGISTRY))
        raise KeyError(
            f"data set {dataset_name!r} has evaluator_type {evaluator_type!r}; known types are: {known}. "
            "Set evaluator_type in its metadata, or register a function of that name in EVALUATOR_REGISTRY"
        )
    check_outputs(cfg, dataset_name)
    evaluators = builder(cfg, dataset_name, output_dir)
    if cfg.TEST.PICTURES > 0 and output_dir is not None:
        evaluators.append(PictureEvaluator(dataset_name, output_dir, count=cfg.TEST.PICTURES))
    return DatasetEvaluators(evaluators)


@EVALUATOR_REGISTRY.register()
@needs("stuff_classes", *_ANY)
def coco_panoptic_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """PQ, AP of things and mIoU, each when MODEL.MASK_FORMER.TEST turns its kind of output on."""
    more = {"boundary": cfg.MODEL.MASK_FORMER.TEST.BOUNDARY_ON, "details": cfg.TEST.REPORT}
    return _evaluators_of_outputs(
        cfg,
        dataset_name,
        panoptic=lambda: COCOPanopticEvaluator(dataset_name, output_dir, **more),
        instance=lambda: InstanceSegEvaluator(dataset_name, output_dir, **more),
        semantic=lambda: SemSegEvaluator(dataset_name, output_dir, details=cfg.TEST.REPORT),
    )


@EVALUATOR_REGISTRY.register()
@needs("stuff_classes", *_ANY)
def ade20k_panoptic_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """As `coco_panoptic_seg`; the objects are those of the metadata's `json_file`."""
    return coco_panoptic_seg(cfg, dataset_name, output_dir)


@EVALUATOR_REGISTRY.register()
@needs("stuff_classes", *_ANY)
def mapillary_vistas_panoptic_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """As `coco_panoptic_seg`; the objects are the things of the panoptic annotations."""
    return coco_panoptic_seg(cfg, dataset_name, output_dir)


@EVALUATOR_REGISTRY.register()
@needs("stuff_classes", *_ANY)
def cityscapes_panoptic_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """PQ, and AP and IoU by Cityscapes' own protocol, each when its kind of output is on."""
    more = {"boundary": cfg.MODEL.MASK_FORMER.TEST.BOUNDARY_ON, "details": cfg.TEST.REPORT}
    return _evaluators_of_outputs(
        cfg,
        dataset_name,
        panoptic=lambda: COCOPanopticEvaluator(dataset_name, output_dir, **more),
        instance=lambda: CityscapesInstanceEvaluator(dataset_name, output_dir),
        semantic=lambda: CityscapesSemSegEvaluator(dataset_name, output_dir),
    )


@EVALUATOR_REGISTRY.register()
@needs("thing_classes", "INSTANCE_ON")
def cityscapes_instance(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """Mask AP by Cityscapes' protocol."""
    return [CityscapesInstanceEvaluator(dataset_name, output_dir)]


@EVALUATOR_REGISTRY.register()
@needs("stuff_classes", "SEMANTIC_ON")
def cityscapes_sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """IoU and iIoU by Cityscapes' protocol."""
    return [CityscapesSemSegEvaluator(dataset_name, output_dir)]


@EVALUATOR_REGISTRY.register()
@needs("thing_classes", "INSTANCE_ON")
def coco(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """Mask AP."""
    boundary = cfg.MODEL.MASK_FORMER.TEST.BOUNDARY_ON
    return [InstanceSegEvaluator(dataset_name, output_dir, boundary=boundary, details=cfg.TEST.REPORT)]


@EVALUATOR_REGISTRY.register()
@needs("stuff_classes", "SEMANTIC_ON")
def sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """Semantic segmentation metrics."""
    return [SemSegEvaluator(dataset_name, output_dir, details=cfg.TEST.REPORT)]


def _evaluators_of_outputs(
    cfg: CfgNode, dataset_name: str, **make: Callable[[], DatasetEvaluator]
) -> list[DatasetEvaluator]:
    """The evaluators of the kinds of output (panoptic, instance, semantic) that the config turns on."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return [make_one() for kind, make_one in make.items() if test[f"{kind.upper()}_ON"]]
