"""Every data set and task, from the release's layout over preparation and training to its metrics."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.d2 import transforms as T
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.d2.structures import Instances
from mask2former.data.datasets import ade20k, cityscapes, coco, coco_stuff, mapillary_vistas
from mask2former.data.images import read_panoptic_png
from mask2former.data.mappers import build_mapper
from mask2former.data.prepare import ade20k as prepare_ade20k
from mask2former.data.prepare import cityscapes as prepare_cityscapes
from mask2former.data.prepare import coco as prepare_coco
from mask2former.data.prepare import mapillary_vistas as prepare_mapillary
from mask2former.engine.trainer import Trainer
from mask2former.modeling.mask_rows import OutputMasks
from tests.helpers import layouts
from tests.helpers.catalog import registered_below
from tests.helpers.models import small_cfg

REGISTRATIONS = (
    ade20k.register_ade20k,
    cityscapes.register_cityscapes,
    coco.register_coco,
    coco_stuff.register_coco_stuff,
    mapillary_vistas.register_mapillary_vistas,
)
PANOPTIC = {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"}


def make_coco(root: Path) -> None:
    folder = layouts.make_coco_panoptic(root)
    prepare_coco.prepare_semantic(folder)
    for split in ("train", "val"):
        content = json.loads((folder / "annotations" / f"panoptic_{split}2017.json").read_bytes())
        content["annotations"] = list(coco_instances(content, folder / f"panoptic_{split}2017"))
        layouts.write_json(folder / "annotations" / f"instances_{split}2017.json", content)


def coco_instances(content: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    (panoptic,) = content["annotations"]
    ids = read_panoptic_png(folder / panoptic["file_name"])
    for segment in panoptic["segments_info"]:
        if segment["category_id"] > 90:  # stuff
            continue
        rle = mask_util.encode(np.asfortranarray(ids == segment["id"]).view(np.uint8))
        yield {
            **segment,
            "image_id": panoptic["image_id"],
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }


def make_cityscapes(root: Path) -> None:
    pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    prepare_cityscapes.prepare(layouts.make_cityscapes(root))


class Case(NamedTuple):
    """A pair of registered names `train`, `test`, how their files are made, the mapper, and the metrics by task."""

    make: Callable[[Path], Any]
    train: str
    test: str
    mapper: str
    metrics: dict[str, str]


CASES = [
    Case(make_coco, "coco_2017_train", "coco_2017_val", "coco_instance_lsj", {"segm": "AP"}),
    Case(make_coco, "coco_2017_train_panoptic", "coco_2017_val_panoptic", "coco_panoptic_lsj", PANOPTIC),
    Case(
        make_coco,
        "coco_2017_train_panoptic_with_sem_seg",
        "coco_2017_val_panoptic_with_sem_seg",
        "mask_former_panoptic",
        PANOPTIC,
    ),
    Case(
        lambda root: prepare_coco.prepare_stuff_10k(layouts.make_coco_stuff(root)),
        "coco_2017_train_stuff_10k_sem_seg",
        "coco_2017_test_stuff_10k_sem_seg",
        "mask_former_semantic",
        {"sem_seg": "mIoU"},
    ),
    Case(
        lambda root: prepare_ade20k.prepare_semantic(layouts.make_ade20k(root)),
        "ade20k_sem_seg_train",
        "ade20k_sem_seg_val",
        "mask_former_semantic",
        {"sem_seg": "mIoU"},
    ),
    Case(
        lambda root: prepare_ade20k.prepare_full(layouts.make_ade20k_full(root)),
        "ade20k_full_sem_seg_train",
        "ade20k_full_sem_seg_val",
        "mask_former_semantic",
        {"sem_seg": "mIoU"},
    ),
    Case(
        lambda root: prepare_ade20k.prepare_instance(layouts.make_ade20k(root)),
        "ade20k_instance_train",
        "ade20k_instance_val",
        "mask_former_instance",
        {"segm": "AP"},
    ),
    Case(
        lambda root: prepare_ade20k.prepare_panoptic(layouts.make_ade20k(root)),
        "ade20k_panoptic_train",
        "ade20k_panoptic_val",
        "mask_former_panoptic",
        PANOPTIC,
    ),
    Case(
        make_cityscapes,
        "cityscapes_fine_sem_seg_train",
        "cityscapes_fine_sem_seg_val",
        "mask_former_semantic",
        {"sem_seg": "IoU"},
    ),
    Case(
        make_cityscapes,
        "cityscapes_fine_instance_seg_train",
        "cityscapes_fine_instance_seg_val",
        "mask_former_instance",
        {"segm": "AP"},
    ),
    Case(
        make_cityscapes,
        "cityscapes_fine_panoptic_train",
        "cityscapes_fine_panoptic_val",
        "mask_former_panoptic",
        {**PANOPTIC, "sem_seg": "IoU"},
    ),
    Case(
        layouts.make_mapillary,
        "mapillary_vistas_sem_seg_train",
        "mapillary_vistas_sem_seg_val",
        "mask_former_semantic",
        {"sem_seg": "mIoU"},
    ),
    Case(
        layouts.make_mapillary,
        "mapillary_vistas_panoptic_train",
        "mapillary_vistas_panoptic_val",
        "mask_former_panoptic",
        PANOPTIC,
    ),
    Case(
        lambda root: prepare_mapillary.prepare_instance(layouts.make_mapillary(root)),
        "mapillary_vistas_panoptic_train",
        "mapillary_vistas_panoptic_val",
        "mask_former_panoptic",
        PANOPTIC,
    ),
]
# What the truth itself scores where that is not 100.
SCORES_OF_TRUTH = {
    # Stuff has the area that it has below things: the wall 24 pixels, of which 18 are seen. Label maps know nothing of
    # the people in front: classes overlap by 18/24, 8/16 and not at all.
    "ade20k_panoptic_train": {"panoptic_seg": 87.5, "sem_seg": 125 / 3},
    # The protocol leaves out instances below 100 pixels, as all are here.
    "cityscapes_fine_instance_seg_train": {"segm": math.nan},
    "cityscapes_fine_panoptic_train": {"segm": math.nan},
}
AUGMENTED = [case for case in CASES if case.train in ("ade20k_sem_seg_train", "cityscapes_fine_panoptic_train")]


def config(case: Case, root: Path, **changes: Any) -> Any:
    metadata = MetadataCatalog.get(case.train)
    classes = metadata.get("stuff_classes") or metadata.thing_classes
    test = {"PANOPTIC_ON": "panoptic_seg", "INSTANCE_ON": "segm", "SEMANTIC_ON": "sem_seg"}
    settings = {
        **{f"MODEL__MASK_FORMER__TEST__{key}": task in case.metrics for key, task in test.items()},
        "MODEL__SEM_SEG_HEAD__NUM_CLASSES": len(classes),
        "MODEL__SEM_SEG_HEAD__IGNORE_VALUE": metadata.get("ignore_label", 255),
        "DATASETS__TRAIN": (case.train,),
        "DATASETS__TEST": (case.test,),
        "INPUT__DATASET_MAPPER_NAME": case.mapper,
        "INPUT__IMAGE_SIZE": 64,
        "INPUT__MIN_SIZE_TRAIN": (64,),
        "INPUT__MIN_SIZE_TEST": 64,
        "INPUT__CROP__ENABLED": True,
        "INPUT__CROP__TYPE": "absolute",
        "INPUT__CROP__SIZE": (64, 64),
        "INPUT__COLOR_AUG_SSD": True,
        "INPUT__SIZE_DIVISIBILITY": 64,
        "DATALOADER__NUM_WORKERS": 0,
        "SOLVER__IMS_PER_BATCH": 2,
        "SOLVER__MAX_ITER": 2,
        "SOLVER__STEPS": (1,),
        "SOLVER__CHECKPOINT_PERIOD": 0,
        "OUTPUT_DIR": str(root / "output"),
        "SEED": 1,
    }
    return small_cfg(**{**settings, **changes})


def trained(case: Case, root: Path, **changes: Any) -> Trainer:
    cfg = config(case, root, **changes)
    trainer = Trainer(cfg)
    trainer.train()
    return trainer


class Truth(nn.Module):
    """Predicts what the annotations of a test set say, through the model's own post-processing."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.model: Any = build_model(cfg)
        changed = cfg.clone()
        changed.DATASETS.TRAIN = cfg.DATASETS.TEST
        mapper: Any = build_mapper(changed, is_train=True)
        mapper.augmentations, mapper.size_divisibility = T.AugmentationList([]), -1
        self.truth = {record["file_name"]: mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TEST[0])}

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._segment(self.truth[record["file_name"]]["instances"]) for record in inputs]

    def _segment(self, instances: Instances) -> dict[str, Any]:
        classes = 40.0 * F.one_hot(instances.gt_classes, self.model.num_classes + 1)
        return self.model.segment(classes, OutputMasks(torch.where(instances.gt_masks.tensor, 20.0, -20.0)))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.train}-{i}" for i, case in enumerate(CASES)])
def test_the_truth_scores_what_it_is_to(case: Case, tmp_path: Path) -> None:
    case.make(tmp_path)
    with registered_below(tmp_path, *REGISTRATIONS):
        cfg = config(case, tmp_path, INPUT__CROP__ENABLED=False)
        results = Trainer.test(cfg, Truth(cfg))
    scores = {task: results[task][metric] for task, metric in case.metrics.items()}
    expected = {**dict.fromkeys(scores, 100.0), **SCORES_OF_TRUTH.get(case.train, {})}
    assert scores == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.train}-{i}" for i, case in enumerate(CASES)])
def test_trains_and_evaluates(case: Case, tmp_path: Path) -> None:
    case.make(tmp_path)
    with registered_below(tmp_path, *REGISTRATIONS):
        results = trained(case, tmp_path).results
        assert len(DatasetCatalog.get(case.train)) > 0
    assert results.keys() == case.metrics.keys()
    assert all(metric in results[task] for task, metric in case.metrics.items())
    scalars = json.loads((tmp_path / "output" / "metrics.json").read_text().splitlines()[-1])
    assert math.isfinite(scalars["total_loss"])


@pytest.mark.parametrize("case", AUGMENTED, ids=[case.train for case in AUGMENTED])
def test_evaluates_with_test_time_augmentation(case: Case, tmp_path: Path) -> None:
    case.make(tmp_path)
    with registered_below(tmp_path, *REGISTRATIONS):
        augmentation = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": (48, 64)}
        trainer = trained(case, tmp_path, MODEL__MASK_FORMER__TEST__BOUNDARY_ON=True, **augmentation)
        results = trainer.test_with_TTA(trainer.cfg, trainer.raw_model)
    assert results.keys() == {"sem_seg_TTA"}


MASKFORMER = {
    "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "transformer_encoder",
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 150,
}


@pytest.mark.parametrize("head", ["MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_trains_and_evaluates_with_maskformers_heads(head: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.train == "ade20k_sem_seg_train")
    architecture = "MaskFormer" if head == "MaskFormerHead" else "SemanticSegmentor"
    changes = {**MASKFORMER, "MODEL__SEM_SEG_HEAD__NAME": head, "MODEL__META_ARCHITECTURE": architecture}
    case.make(tmp_path)
    with registered_below(tmp_path, *REGISTRATIONS):
        trainer = trained(case, tmp_path, **changes, TEST__AUG__MIN_SIZES=(48, 64))
        results = {**trainer.results, **trainer.test_with_TTA(trainer.cfg, trainer.raw_model)}
    assert results.keys() == {"sem_seg", "sem_seg_TTA"}
    scalars = json.loads((tmp_path / "output" / "metrics.json").read_text().splitlines()[-1])
    assert math.isfinite(scalars["total_loss"])
