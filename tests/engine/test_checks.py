"""Every setup mistake is found before the first step, and its message names key or file and the fix."""

import re

import numpy as np
import pytest
from PIL import Image

from mask2former import get_cfg
from mask2former.d2.config_file import merge_config_file
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.engine.checks import (
    SetupError,
    check_files,
    check_head,
    check_ignore_label,
    check_label_maps,
    check_machine,
    check_mapper,
    check_setup,
    check_tasks,
    missing_files,
    unread_input_keys,
)
from tests.helpers.models import CONFIGS

PANOPTIC = {"evaluator_type": "coco_panoptic_seg", "stuff_classes": ["a", "b"], "thing_classes": ["a", "b"]}
SEMANTIC = {"evaluator_type": "sem_seg", "stuff_classes": ["a", "b"], "ignore_label": 255}
THINGS = {"thing_dataset_id_to_contiguous_id": {1: 0}}


def write_png(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def register():
    names = []

    def add(name, dicts, **metadata):
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    cfg.DATASETS.TRAIN = ("check_train",)
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


@pytest.fixture
def panoptic_dicts(tmp_path):
    return [
        {
            "file_name": write_png(tmp_path / "images" / f"{index}.png"),
            "pan_seg_file_name": write_png(tmp_path / "panoptic" / f"{index}.png"),
            "segments_info": [{"id": 1, "category_id": index % 2, "iscrowd": 0}],
            "image_id": index,
        }
        for index in range(3)
    ]


def test_a_sound_setup_passes(cfg, register, panoptic_dicts, tmp_path):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    register("check_val", panoptic_dicts[:1], **PANOPTIC, **THINGS)
    cfg.DATASETS.TEST = ("check_val",)
    check_setup(cfg)
    check_setup(cfg, eval_only=True)
    assert not list((tmp_path / "out").iterdir())


def test_unknown_data_set_is_named_with_a_suggestion(cfg, register, panoptic_dicts):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    cfg.DATASETS.TRAIN = ("check_trian",)
    with pytest.raises(SetupError, match=r"DATASETS\.TRAIN.*'check_trian'.*did you mean check_train"):
        check_setup(cfg)
    cfg.DATASETS.TRAIN = ("check_train",)
    cfg.DATASETS.TEST = ("zzz",)
    with pytest.raises(SetupError, match=r"DATASETS\.TEST.*'zzz'.*there are .*check_train"):
        check_setup(cfg)


def test_empty_data_set(cfg, register):
    register("check_train", [], **PANOPTIC, **THINGS)
    with pytest.raises(SetupError, match="'check_train' holds no images"):
        check_setup(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(SetupError, match=r"DATASETS\.TRAIN is empty"):
        check_setup(cfg)


def test_missing_annotation_file(cfg):
    def load():
        raise FileNotFoundError("no annotation file /data/x.json")

    DatasetCatalog.register("check_train", load)
    try:
        with pytest.raises(SetupError, match=r"'check_train' cannot be read: no annotation file /data/x\.json"):
            check_setup(cfg)
    finally:
        DatasetCatalog.remove("check_train")


@pytest.mark.parametrize("where", ["TRAIN", "TEST"])
def test_number_of_classes_names_key_both_numbers_and_fix(cfg, register, panoptic_dicts, where):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    other = {**PANOPTIC, "stuff_classes": ["a", "b", "c"]}
    register("check_other", panoptic_dicts, **other, **THINGS)
    cfg.DATASETS[where] = ("check_other",)
    with pytest.raises(SetupError) as error:
        check_setup(cfg)
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 2" in str(error.value)
    assert "'check_other' has 3 classes (a, b, c)" in str(error.value)
    assert "Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 3" in str(error.value)


def test_classes_are_not_checked_for_other_architectures(cfg, register, panoptic_dicts):
    register("check_train", panoptic_dicts, **{**PANOPTIC, "stuff_classes": ["a"]})
    cfg.MODEL.META_ARCHITECTURE = "MyModel"
    check_setup(cfg)


@pytest.mark.parametrize(
    ("mapper", "kind"),
    [("mask_former_instance", "annotations"), ("mask_former_semantic", "sem_seg_file_name")],
)
def test_mapper_that_does_not_fit_the_annotations(mapper, kind, panoptic_dicts):
    with pytest.raises(SetupError) as error:
        check_mapper(mapper, "shapes", panoptic_dicts)
    assert f"INPUT.DATASET_MAPPER_NAME is {mapper!r}, which reads {kind!r}" in str(error.value)
    assert "3 of 3 images" in str(error.value)
    assert "Use mask_former_panoptic or coco_panoptic_lsj" in str(error.value)


def test_single_image_without_annotation_is_named(panoptic_dicts):
    del panoptic_dicts[1]["pan_seg_file_name"]
    with pytest.raises(SetupError, match=r"1 of 3 images.*the first: .*1\.png"):
        check_mapper("coco_panoptic_lsj", "shapes", panoptic_dicts)


def test_unknown_mapper_is_named(cfg, register, panoptic_dicts):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_ljs"
    with pytest.raises(SetupError, match=r"'coco_panoptic_ljs'.*did you mean coco_panoptic_lsj"):
        check_setup(cfg)


@pytest.mark.parametrize("category", [-1, 2])
def test_category_out_of_range_names_file_and_value(cfg, register, panoptic_dicts, category):
    panoptic_dicts[2]["segments_info"][0]["category_id"] = category
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    with pytest.raises(SetupError, match=rf"panoptic/2\.png: category_id {category} .*outside 0\.\.1"):
        check_setup(cfg)


def test_category_of_an_instance_out_of_range(cfg, register, panoptic_dicts):
    dicts = [{"file_name": item["file_name"], "annotations": [{"category_id": 5}]} for item in panoptic_dicts]
    register("check_train", dicts, thing_classes=["a", "b"], evaluator_type="coco", **THINGS)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    with pytest.raises(SetupError, match=r"images/0\.png: category_id 5"):
        check_setup(cfg)


def test_missing_files_lists_ten(tmp_path):
    there = write_png(tmp_path / "there.png")
    dicts = [{"file_name": there}, *({"file_name": str(tmp_path / f"{index}.png")} for index in range(12))]
    with pytest.raises(SetupError) as error:
        check_files("shapes", dicts, keys=("file_name",))
    text = str(error.value)
    assert text.startswith("12 files of data set 'shapes' are missing")
    assert str(tmp_path / "9.png") in text
    assert "10.png" not in text
    assert "and 2 more" in text
    assert "DETECTRON2_DATASETS" in text
    with pytest.raises(SetupError) as error:
        check_files("shapes", dicts[:11], keys=("file_name",))
    assert str(error.value).startswith("10 files")
    assert "more" not in str(error.value)


def test_missing_panoptic_png_is_found(cfg, register, panoptic_dicts):
    panoptic_dicts[1]["pan_seg_file_name"] += ".gone"
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    with pytest.raises(SetupError, match=r"1 files.*\n.*panoptic/1\.png\.gone"):
        check_setup(cfg)


def test_remote_files_and_missing_folders(tmp_path):
    assert missing_files(["s3://bucket/a.png", str(tmp_path / "no" / "b.png")]) == [str(tmp_path / "no" / "b.png")]


def test_label_out_of_range_names_file_and_value(tmp_path):
    dicts = [{"sem_seg_file_name": write_png(tmp_path / f"{value}.png", value)} for value in (0, 1, 255)]
    check_label_maps(dicts, 2, ignore_label=255)
    dicts.append({"sem_seg_file_name": write_png(tmp_path / "7.png", 7)})
    with pytest.raises(SetupError, match=r"7\.png: label 7 is neither a class \(0\.\.1\) nor the ignore label 255"):
        check_label_maps(dicts, 2, ignore_label=255)
    with pytest.raises(SetupError, match=r"255\.png: label 255"):
        check_label_maps(dicts, 8, ignore_label=0)


@pytest.fixture
def semantic_dicts(tmp_path):
    def write(*values):
        return [
            {
                "file_name": write_png(tmp_path / "images" / f"{value}.png"),
                "sem_seg_file_name": write_png(tmp_path / "labels" / f"{value}.png", value),
                "image_id": value,
            }
            for value in values
        ]

    return write


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 255), r"0\.png and the other label maps hold 0 and 255 alone\. 255 is the label to ignore"),
        ((255,), r"255\.png and the other label maps hold nothing but the ignore label 255"),
        ((1, 2), r"2\.png: label 2 is neither a class.*Where 0 stands for nothing.*shift the labels down"),
        ((0, 9), r"9\.png: label 9 is neither a class"),
    ],
)
def test_masks_that_are_no_label_maps(cfg, register, semantic_dicts, key, values, message):
    register("check_good", semantic_dicts(0, 1), **SEMANTIC)
    register("check_masks", semantic_dicts(*values), **SEMANTIC)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("check_good",), ("check_good",)
    check_setup(cfg)
    cfg.DATASETS[key] = ("check_masks",)
    with pytest.raises(SetupError, match=message):
        check_setup(cfg)


def test_training_data_without_annotations(cfg, register, panoptic_dicts, caplog):
    for item in panoptic_dicts:
        item["segments_info"] = [{"id": 1, "category_id": 0, "iscrowd": 1}]
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    with pytest.raises(SetupError, match="'check_train': none of its 3 images has an annotation to learn from"):
        check_setup(cfg)
    cfg.DATASETS.TEST = ("check_train",)
    check_setup(cfg, eval_only=True)
    assert "none of its 3 images has an annotation to score" in caplog.text


def test_what_a_run_trains_on_is_told(cfg, register, panoptic_dicts, caplog):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    with caplog.at_level("INFO"):
        check_setup(cfg)
    assert "Data set check_train: 3 images, 3 objects, 2 classes" in caplog.text


def test_fewer_queries_than_objects_are_told(cfg, register, panoptic_dicts, caplog):
    panoptic_dicts[1]["segments_info"] = [{"id": i, "category_id": 0, "iscrowd": i == 9} for i in range(1, 10)]
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 8
    check_setup(cfg)
    assert "queries" not in caplog.text
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 7
    check_setup(cfg)
    assert "1.png has 8 objects, of which 7 queries" in caplog.text
    assert "NUM_OBJECT_QUERIES to 8 or more" in caplog.text


def test_keys_that_the_mapper_does_not_read_are_named(cfg, register, panoptic_dicts, semantic_dicts):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    cfg.INPUT.IMAGE_SIZE = 512
    assert unread_input_keys(cfg) == []
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.MIN_SIZE_TRAIN = (400,)
    assert unread_input_keys(cfg) == ["INPUT.MIN_SIZE_TRAIN", "INPUT.CROP.ENABLED"]
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.MIN_SCALE = 0.5
    assert sorted(unread_input_keys(cfg)) == ["INPUT.IMAGE_SIZE", "INPUT.MIN_SCALE"]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("maskformer*.yaml")), ids=lambda path: path.stem)
def test_mappers_of_published_configs_read_all_their_keys(path):
    cfg = get_cfg()
    merge_config_file(cfg, path)
    assert unread_input_keys(cfg) == []


def test_label_maps_are_checked_for_the_semantic_mapper(cfg, register, panoptic_dicts, tmp_path):
    for item in panoptic_dicts:
        item["sem_seg_file_name"] = write_png(tmp_path / "labels" / "a.png", 9)
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    with pytest.raises(SetupError, match=r"labels/a\.png: label 9"):
        check_setup(cfg)


def test_absent_weights_are_named(cfg):
    cfg.MODEL.WEIGHTS = "output/none.pth"
    with pytest.raises(SetupError, match=r"MODEL\.WEIGHTS 'output/none\.pth' does not exist"):
        check_machine(cfg, world_size=1)
    cfg.MODEL.WEIGHTS = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    check_machine(cfg, world_size=1)


def test_folder_of_another_model_is_refused(cfg, tmp_path):
    cfg.MODEL.WEIGHTS = str(tmp_path)
    with pytest.raises(SetupError, match=r"MODEL\.WEIGHTS: .* without config\.json"):
        check_machine(cfg, world_size=1)
    (tmp_path / "config.json").write_text('{"model_type": "mask2former", "backbone_config": {"model_type": "swin"}}')
    with pytest.raises(SetupError, match=r"MODEL\.WEIGHTS: .* holds a model of transformers, and this is none"):
        check_machine(cfg, world_size=1)


def test_unwritable_output_dir_is_named(cfg, tmp_path):
    (tmp_path / "file").touch()
    cfg.OUTPUT_DIR = str(tmp_path / "file")
    with pytest.raises(SetupError, match=re.escape(f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} cannot be written")):
        check_machine(cfg, world_size=1)


@pytest.mark.parametrize(("batch", "world_size"), [(3, 2), (1, 2)])
def test_batch_that_processes_cannot_share(cfg, batch, world_size):
    cfg.SOLVER.IMS_PER_BATCH = batch
    with pytest.raises(SetupError, match=rf"IMS_PER_BATCH is {batch}, which 2 processes.*multiple of 2"):
        check_machine(cfg, world_size=world_size)
    check_machine(cfg, world_size=world_size, eval_only=True)


def test_panoptic_output_needs_to_know_things(cfg, register, panoptic_dicts):
    register("check_train", panoptic_dicts, **PANOPTIC)
    with pytest.raises(SetupError, match=r"PANOPTIC_ON is True.*'check_train'.*thing_dataset_id"):
        check_setup(cfg)


@pytest.mark.parametrize(
    ("evaluator_type", "switch"),
    [
        ("sem_seg", "SEMANTIC_ON"),
        ("coco", "INSTANCE_ON"),
        ("cityscapes_sem_seg", "SEMANTIC_ON"),
        ("cityscapes_instance", "INSTANCE_ON"),
    ],
)
def test_test_set_that_the_outputs_cannot_score(cfg, register, panoptic_dicts, evaluator_type, switch):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    register("check_val", panoptic_dicts, **{**PANOPTIC, "evaluator_type": evaluator_type})
    cfg.DATASETS.TEST = ("check_val",)
    cfg.MODEL.MASK_FORMER.TEST[switch] = False
    with pytest.raises(SetupError, match=rf"'check_val'.*{switch} is False"):
        check_setup(cfg)


@pytest.mark.parametrize("changes", [{"COMPACT_OUTPUTS": True}, {"SEMANTIC_ON": False}])
def test_test_time_augmentation_that_has_no_scores_to_average(cfg, register, panoptic_dicts, changes):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    register("check_val", panoptic_dicts, **PANOPTIC)
    cfg.DATASETS.TEST = ("check_val",)
    cfg.TEST.AUG.ENABLED = True
    check_tasks(cfg)
    for key, value in changes.items():
        cfg.MODEL.MASK_FORMER.TEST[key] = value
    with pytest.raises(SetupError, match="averages semantic scores"):
        check_tasks(cfg)


def test_model_without_output(cfg, register, panoptic_dicts):
    register("check_train", panoptic_dicts, **PANOPTIC, **THINGS)
    for switch in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"):
        cfg.MODEL.MASK_FORMER.TEST[switch] = False
    with pytest.raises(SetupError, match="would output nothing"):
        check_setup(cfg)


def test_ignore_label_of_config_and_data_set_agree():
    MetadataCatalog.get("test_checks_ignores_zero").ignore_label = 0
    check_ignore_label("test_checks_ignores_zero", 0)
    check_ignore_label("test_checks_says_nothing", 255)
    with pytest.raises(SetupError, match=r"IGNORE_VALUE is 255, but data set .*ignores_zero.* with 0\. Set"):
        check_ignore_label("test_checks_ignores_zero", 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"META_ARCHITECTURE": "SemanticSegmentor", "SEM_SEG_HEAD.NAME": "MaskFormerHead"},
            r"'SemanticSegmentor' classifies pixels, which MaskFormerHead does not.*'PerPixelBaselineHead'",
        ),
        (
            {"META_ARCHITECTURE": "SemanticSegmentor", "SEM_SEG_HEAD.NAME": "PerPixelBaselineHead"},
            r"learns from label maps, which .* 'coco_panoptic_lsj' does not give. Use 'mask_former_semantic'",
        ),
        (
            {"SEM_SEG_HEAD.NAME": "PerPixelBaselinePlusHead"},
            r"a query per class, but .*NUM_OBJECT_QUERIES is 100 and MODEL.SEM_SEG_HEAD.NUM_CLASSES 2",
        ),
        (
            {
                "SEM_SEG_HEAD.NAME": "MaskFormerHead",
                "SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
                "MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
            },
            r"'transformer_encoder', but BasePixelDecoder has none. .* 'TransformerEncoderPixelDecoder'",
        ),
    ],
)
def test_heads_that_do_not_fit_are_named(cfg, changes, message):
    for key, value in changes.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(SetupError, match=message):
        check_setup(cfg)


def test_heads_that_fit_pass(cfg):
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "PerPixelBaselinePlusHead"
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 2
    check_head(cfg, eval_only=True)  # the mapper's targets do not matter then
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    check_head(cfg)
    check_head(get_cfg())


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_of_classes_that_are_not_one_for_each(cfg, weights):
    cfg.MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS = weights
    with pytest.raises(SetupError, match=rf"WEIGHT_OF_EACH_CLASS .*{len(weights)} weights for 2 classes"):
        check_setup(cfg)


def test_weights_of_classes(cfg):
    cfg.MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS = [0.0, 2.0]
    check_head(cfg)
