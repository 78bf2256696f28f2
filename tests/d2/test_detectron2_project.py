"""A project of Detectron2 with this library as a plug-in: its trainer, loader, evaluators, predictor and drawing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.d2 import SOURCE

if SOURCE != "official":
    pytest.skip("Detectron2 is not installed", allow_module_level=True)

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils.visualizer import Visualizer

import mask2former
from mask2former.checkpoint import read_checkpoint
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.data.datasets.shapes import CATEGORIES, write_split
from mask2former.data.images import read_image, read_panoptic_png
from mask2former.data.targets import panoptic_targets
from mask2former.engine import trainer as own
from mask2former.engine.optimizer import build_optimizer
from tests.helpers.models import small_cfg

NAME = "test_project_shapes"


class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        mapper = mask2former.COCOPanopticNewBaselineDatasetMapper(cfg, True)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        folder = str(Path(cfg.OUTPUT_DIR, "inference"))
        coco = COCOEvaluator(dataset_name, tasks=("segm",), output_dir=folder)
        return DatasetEvaluators([coco, SemSegEvaluator(dataset_name, output_dir=folder)])


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("project")
    for _ in write_split(root, "train", 3, size=(64, 80)):
        pass
    (root / "semseg").mkdir()
    mask2former.register_coco_panoptic(
        NAME,
        image_root=root / "train2017",
        panoptic_root=root / "panoptic_train2017",
        panoptic_json=root / "annotations" / "panoptic_train2017.json",
        instances_json=root / "annotations" / "instances_train2017.json",
        sem_seg_root=root / "semseg",
        categories=CATEGORIES,
    )
    for record in DatasetCatalog.get(NAME):
        path = record["pan_seg_file_name"]
        targets = panoptic_targets(read_panoptic_png(path), record["segments_info"], path)
        labels = np.append(targets.classes, 255)[targets.index].astype(np.uint8)
        Image.fromarray(labels).save(record["sem_seg_file_name"])
    cfg = small_cfg(
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=8,
        DATASETS__TRAIN=(NAME,),
        DATASETS__TEST=(NAME,),
        DATALOADER__NUM_WORKERS=0,
        INPUT__DATASET_MAPPER_NAME="coco_panoptic_lsj",
        INPUT__IMAGE_SIZE=64,
        INPUT__MIN_SIZE_TEST=64,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=(),
        SOLVER__AMP__ENABLED=False,
        TEST__EVAL_PERIOD=0,
        OUTPUT_DIR=str(root / "output"),
    )
    (root / "output").mkdir()
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def results(cfg: CfgNode) -> dict[str, Any]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer._last_eval_results


def test_default_trainer_trains_and_detectron2s_evaluators_score(cfg: CfgNode, results: dict[str, Any]) -> None:
    assert Path(cfg.OUTPUT_DIR, "model_final.pth").is_file()
    assert {f"AP-{name}" for name in ("circle", "square", "triangle", "star")} <= set(results["segm"])
    assert 0 < results["sem_seg"]["pACC"] < 100
    assert sum(key.startswith("IoU-") for key in results["sem_seg"]) == 8


@pytest.mark.parametrize("compact", [False, True])
def test_default_predictor_and_visualizer(cfg: CfgNode, results: dict[str, Any], compact: bool) -> None:
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR, "model_final.pth"))
    cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS = compact
    cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = 0.0
    record = DatasetCatalog.get(NAME)[0]
    image = read_image(record["file_name"], "BGR")
    outputs = DefaultPredictor(cfg)(image)
    assert len(outputs["instances"]) > 0
    metadata = MetadataCatalog.get(NAME)
    labels = outputs["sem_seg"] if compact else outputs["sem_seg"].argmax(0)
    for draw, arguments in (
        ("draw_instance_predictions", (outputs["instances"],)),
        ("draw_panoptic_seg", outputs["panoptic_seg"]),
        ("draw_sem_seg", (labels,)),
    ):
        drawing = getattr(Visualizer(image[:, :, ::-1], metadata), draw)(*arguments).get_image()
        assert drawing.shape == image.shape
        assert not np.array_equal(drawing, image[:, :, ::-1]), draw


def test_visualizer_draws_what_mappers_give(cfg: CfgNode) -> None:
    example = mask2former.MaskFormerPanopticDatasetMapper(is_train=True, augmentations=[])(DatasetCatalog.get(NAME)[0])
    fields = example["instances"].get_fields()  # as Detectron2's visualize_data.py does
    image = example["image"].permute(1, 2, 0).numpy()
    drawing = Visualizer(image, MetadataCatalog.get(NAME)).overlay_instances(
        boxes=fields.get("gt_boxes"), masks=fields.get("gt_masks"), labels=fields["gt_classes"].tolist()
    )
    assert not np.array_equal(drawing.get_image(), image)


def test_components_are_built_from_lazy_configs(cfg: CfgNode) -> None:
    mapper = LazyCall(mask2former.COCOPanopticNewBaselineDatasetMapper)(
        is_train=True,
        augmentations=[
            LazyCall(T.ResizeScale)(min_scale=0.5, max_scale=1.0, target_height=32, target_width=32),
            LazyCall(T.FixedSizeCrop)(crop_size=(32, 32)),
        ],
    )
    loader = LazyCall(build_detection_train_loader)(
        dataset=LazyCall(DatasetCatalog.get)(name=NAME), mapper=mapper, total_batch_size=2
    )
    batch = next(iter(instantiate(loader)))
    assert [example["image"].shape for example in batch] == [(3, 32, 32)] * 2
    assert batch[0]["instances"].gt_boxes.tensor.shape == (len(batch[0]["instances"]), 4)
    torch.manual_seed(0)
    model = mask2former.modeling.MaskFormer(cfg)
    assert all(torch.isfinite(loss) for loss in model(batch).values())


def test_detectron2s_checkpointer_loads_files_of_our_trainer(cfg: CfgNode, tmp_path: Path) -> None:
    """With all that they say of their model, an average of the weights and thresholds beside it."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.MODEL_EMA.ENABLED, cfg.SOLVER.MAX_ITER = str(tmp_path), True, 1
    own.Trainer(cfg).train()
    content = read_checkpoint(tmp_path / "model_final.pth")
    assert {"config_yaml", "categories", "ema_state", "hooks"} <= content.keys()
    torch.manual_seed(1)
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 0
    assert model.state_dict().keys() == content["model"].keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, torch.as_tensor(content["model"][name]), rtol=0, atol=0, msg=name)
    assert optimizer.state_dict()["state"].keys() == content["optimizer"]["state"].keys()
