import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mask2former
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.structures import BitMasks, Boxes
from mask2former.d2.transforms import HFlipTransform
from mask2former.data import (
    DATASET_MAPPER_REGISTRY,
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    DataError,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
    build_mapper,
)
from mask2former.data.datasets import register_coco_instances, register_coco_panoptic
from mask2former.data.datasets.shapes import THING_IDS
from mask2former.data.images import read_image, read_panoptic_png
from mask2former.modeling.masks import PackedMasks

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data" / "coco"
PUBLISHED = {
    "mask_former_panoptic": MaskFormerPanopticDatasetMapper,
    "mask_former_semantic": MaskFormerSemanticDatasetMapper,
    "mask_former_instance": MaskFormerInstanceDatasetMapper,
    "coco_panoptic_lsj": COCOPanopticNewBaselineDatasetMapper,
    "coco_instance_lsj": COCOInstanceNewBaselineDatasetMapper,
}


@pytest.fixture
def record(panoptic_set) -> dict:
    return DatasetCatalog.get(panoptic_set.name)[0]


def make_plain(cfg: CfgNode, name: str) -> None:
    """Turns every random choice off: images keep their size."""
    cfg.INPUT.DATASET_MAPPER_NAME = name
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = False


def test_registry_holds_the_published_names() -> None:
    assert {name for name, _ in DATASET_MAPPER_REGISTRY} >= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_classes_are_built_from_configs(cfg: CfgNode, panoptic_set, name: str) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = name
    assert type(build_mapper(cfg, True)) is PUBLISHED[name]
    assert PUBLISHED[name](cfg, True).is_train
    assert not PUBLISHED[name](cfg, is_train=False).is_train


def test_unknown_mapper_lists_the_known(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic"
    with pytest.raises(ValueError, match=r"'coco_panoptic'.*coco_panoptic_lsj"):
        build_mapper(cfg, True)


def test_lsj_output(cfg: CfgNode, record: dict) -> None:
    mapper = build_mapper(cfg, True)
    np.random.seed(0)
    for _ in range(20):
        result = mapper(record)
        instances = result["instances"]
        assert result["image"].shape == (3, 64, 64)
        assert result["image"].dtype == torch.uint8
        assert result["image"].is_contiguous()
        assert instances.image_size == (64, 64)
        assert instances.gt_classes.dtype == torch.int64
        assert instances.gt_masks.tensor.dtype == torch.bool
        assert instances.gt_masks.tensor.shape == (len(instances), 64, 64)
        assert instances.gt_classes.tolist() == [item["category_id"] for item in record["segments_info"]]
        assert (instances.gt_masks.tensor.sum(dim=0) <= 1).all()
    assert (result["height"], result["width"]) == (record["height"], record["width"])
    assert result["image_id"] == record["image_id"]
    assert "segments_info" in record
    assert "segments_info" not in result


def test_plain_panoptic_targets_are_those_of_the_file(cfg: CfgNode, record: dict) -> None:
    make_plain(cfg, "mask_former_panoptic")
    result = build_mapper(cfg, True)(record)
    ids = read_panoptic_png(record["pan_seg_file_name"])
    expected = np.stack([ids == item["id"] for item in record["segments_info"]])
    assert np.array_equal(result["instances"].gt_masks.tensor.numpy(), expected)
    assert result["instances"].gt_classes.tolist() == [item["category_id"] for item in record["segments_info"]]
    image = read_image(record["file_name"], "RGB")
    assert np.array_equal(result["image"].numpy(), image.transpose(2, 0, 1))


@pytest.mark.parametrize("is_train", [True, False])
def test_channels_have_the_order_that_the_config_says(cfg: CfgNode, record: dict, is_train: bool) -> None:
    make_plain(cfg, "mask_former_panoptic")
    cfg.INPUT.MIN_SIZE_TEST = 0
    rgb = build_mapper(cfg, is_train)(record)["image"]
    cfg.INPUT.FORMAT = "BGR"
    bgr = build_mapper(cfg, is_train)(record)["image"]
    assert torch.equal(bgr, rgb.flip(0))
    assert not torch.equal(bgr, rgb)


def test_flip_keeps_masks_aligned(record: dict) -> None:
    def mapped(*augmentations) -> dict:
        return MaskFormerPanopticDatasetMapper(is_train=True, augmentations=augmentations)(record)

    plain, flipped = mapped(), mapped(HFlipTransform(record["width"]))
    assert torch.equal(flipped["image"], plain["image"].flip(2))
    assert torch.equal(flipped["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor.flip(2))
    assert torch.equal(flipped["instances"].gt_classes, plain["instances"].gt_classes)


def test_random_geometry_moves_image_and_masks_alike(cfg: CfgNode, tmp_path: Path) -> None:
    # The image shows its own mask, so after any flip, scale and crop both must still coincide.
    square = np.zeros((48, 48), dtype=np.uint8)
    square[8:30, 16:44] = 255
    Image.fromarray(square).save(tmp_path / "image.png")
    ids = np.zeros((48, 48, 3), dtype=np.uint8)
    ids[..., 0] = np.where(square > 0, 7, 9)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    record = {
        "file_name": str(tmp_path / "image.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [{"id": 7, "category_id": 0}, {"id": 9, "category_id": 1}],
    }
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 0.5, 2.0
    mapper = build_mapper(cfg, True)
    np.random.seed(1)
    for _ in range(20):
        result = mapper(record)
        masks = dict(zip(result["instances"].gt_classes.tolist(), result["instances"].gt_masks.tensor, strict=True))
        bright = result["image"][0] > 200
        assert (bright != masks.get(0, torch.zeros_like(bright))).float().mean() < 0.06


def test_padding_to_size_divisibility(cfg: CfgNode, record: dict, caplog: pytest.LogCaptureFixture) -> None:
    make_plain(cfg, "mask_former_panoptic")
    cfg.INPUT.SIZE_DIVISIBILITY = 128
    result = build_mapper(cfg, True)(record)
    height, width = record["height"], record["width"]
    assert result["image"].shape == (3, 128, 128)
    assert (result["image"][:, height:] == 128).all()
    assert (result["image"][:, :, width:] == 128).all()
    assert result["instances"].gt_masks.tensor.shape[1:] == (128, 128)
    assert result["instances"].image_size == (128, 128)
    assert not result["instances"].gt_masks.tensor[:, height:].any()
    assert "SIZE_DIVISIBILITY" not in caplog.text

    cfg.INPUT.SIZE_DIVISIBILITY = 48
    mapper = build_mapper(cfg, True)
    assert mapper(record)["image"].shape == (3, 96, 96)
    mapper(record)
    assert caplog.text.count("INPUT.SIZE_DIVISIBILITY 48") == 1


def test_crop_limits_the_share_of_a_category(cfg: CfgNode, record: dict) -> None:
    make_plain(cfg, "mask_former_panoptic")
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [32, 32]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_AUG_SSD = True
    result = build_mapper(cfg, True)(record)
    assert result["image"].shape == (3, 32, 32)
    assert result["instances"].gt_masks.tensor.shape[1:] == (32, 32)


def test_fields_of_the_published_mappers_are_made_when_asked_for(
    cfg: CfgNode, record: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("made for somebody who did not ask")

    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 0.5  # the lower and right parts are padding
    mapper = build_mapper(cfg, True)
    with monkeypatch.context() as patch:
        patch.setattr(PackedMasks, "get_bounding_boxes", never)
        patch.setattr(PackedMasks, "__iter__", never)
        result = pickle.loads(pickle.dumps(mapper(record)))  # as on the way from a worker
        moved = result["instances"].to("cpu")
        assert len(moved.gt_boxes) == len(result["instances"])
    boxes = BitMasks(result["instances"].gt_masks.tensor).get_bounding_boxes().tensor
    assert torch.equal(moved.gt_boxes.tensor, boxes)
    assert isinstance(moved.gt_boxes, Boxes)
    assert torch.equal(moved[boxes[:, 3] > 20].gt_boxes.tensor, boxes[boxes[:, 3] > 20])

    assert "padding_mask" in result
    assert "padding_mask" not in list(result)
    padding = result["padding_mask"]
    height, width = (int((~padding).any(dim=axis).sum()) for axis in (1, 0))
    assert max(height, width) == 32
    assert (result["image"][:, padding] == 128).all()
    assert padding[height:].all()
    assert padding[:, width:].all()
    assert "sem_seg" not in result
    assert result.get("sem_seg") is None

    make_plain(cfg, "mask_former_panoptic")
    cfg.INPUT.SIZE_DIVISIBILITY = 128
    result = build_mapper(cfg, True)(record)
    classes = {item["id"]: item["category_id"] for item in record["segments_info"]}
    ids = read_panoptic_png(record["pan_seg_file_name"])
    expected = np.full((128, 128), 255)
    expected[: ids.shape[0], : ids.shape[1]] = np.vectorize(lambda number: classes.get(number, 255))(ids)
    assert np.array_equal(result.get("sem_seg").numpy(), expected)
    assert int((~result["padding_mask"]).sum()) == ids.size


@pytest.mark.parametrize("name", PUBLISHED)
def test_mappers_say_what_they_read(cfg: CfgNode, record: dict, name: str) -> None:
    record = {**record, "sem_seg_file_name": "x", "annotations": [], "segments_info": []}
    del record[DATASET_MAPPER_REGISTRY.get(name).reads]
    cfg.INPUT.DATASET_MAPPER_NAME = name
    with pytest.raises(DataError, match=DATASET_MAPPER_REGISTRY.get(name).reads):
        build_mapper(cfg, True)(record)


def test_image_without_segments(cfg: CfgNode, record: dict, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    Image.new("RGB", (record["width"], record["height"])).save(empty)
    result = build_mapper(cfg, True)({**record, "pan_seg_file_name": str(empty), "segments_info": []})
    assert len(result["instances"]) == 0
    assert result["instances"].gt_masks.tensor.shape == (0, 64, 64)


def test_test_time_needs_no_annotations(cfg: CfgNode, record: dict) -> None:
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 100, 1000
    mapper = build_mapper(cfg, False)
    result = mapper({"file_name": record["file_name"], "image_id": 7})
    assert min(result["image"].shape[1:]) == 100
    assert (result["height"], result["width"]) == (record["height"], record["width"])
    assert "instances" not in result
    assert mapper(record)["segments_info"] == record["segments_info"]


def test_image_of_another_size_than_its_annotation(cfg: CfgNode, record: dict) -> None:
    for is_train in (True, False):
        with pytest.raises(DataError, match=rf"{record['file_name']} is .* pixels.*annotation says 5x"):
            build_mapper(cfg, is_train)({**record, "width": 5})


def test_png_of_another_size_than_its_image(cfg: CfgNode, record: dict) -> None:
    path = record["pan_seg_file_name"]
    Image.open(path).crop((0, 0, 20, 10)).save(path)
    with pytest.raises(DataError, match=rf"{path} is 20x10 pixels.*{record['file_name']} says"):
        build_mapper(cfg, True)(record)


@pytest.mark.parametrize("key", ["file_name", "pan_seg_file_name"])
def test_truncated_file_is_named(cfg: CfgNode, record: dict, key: str) -> None:
    path = Path(record[key])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=path.name):
        build_mapper(cfg, True)(record)


def test_semantic_mapper_reads_16_bits_and_its_data_set(cfg: CfgNode, record: dict, tmp_path: Path) -> None:
    labels = np.full((record["height"], record["width"]), 65535, dtype=np.uint16)
    labels[:10], labels[10:20] = 300, 2
    Image.fromarray(labels).save(tmp_path / "labels.tif")
    record["sem_seg_file_name"] = str(tmp_path / "labels.tif")
    cfg.DATASETS.TRAIN = ("test_semantic",)
    names = [str(number) for number in range(301)]
    MetadataCatalog.get("test_semantic").set(ignore_label=65535, stuff_classes=names)
    try:
        make_plain(cfg, "mask_former_semantic")
        cfg.INPUT.SIZE_DIVISIBILITY = 128
        instances = build_mapper(cfg, True)(record)["instances"]
        assert instances.gt_classes.tolist() == [2, 300]
        assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [10 * record["width"]] * 2

        labels[0, 0] = 301
        Image.fromarray(labels).save(tmp_path / "labels.tif")
        with pytest.raises(DataError, match=r"labels\.tif: labels \[301\].*301 classes"):
            build_mapper(cfg, True)(record)
    finally:
        MetadataCatalog.remove("test_semantic")


@pytest.mark.parametrize("architecture", ["MaskFormer", "SemanticSegmentor"])
def test_semantic_mapper_gives_the_label_map_to_who_learns_from_it(
    cfg: CfgNode, record: dict, tmp_path: Path, architecture: str
) -> None:
    labels = np.full((record["height"], record["width"]), 255, dtype=np.uint8)
    labels[:10], labels[10:20, :5] = 3, 0
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    make_plain(cfg, "mask_former_semantic")
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.INPUT.SIZE_DIVISIBILITY = 128
    assert "sem_seg" not in build_mapper(cfg, False)(record)
    result = build_mapper(cfg, True)(record)
    assert ("sem_seg" in list(result)) == (architecture == "SemanticSegmentor"), "made at once where it is needed"
    expected = np.full((128, 128), 255)
    expected[: record["height"], : record["width"]] = labels
    assert result["sem_seg"].dtype == torch.int64
    assert np.array_equal(result["sem_seg"].numpy(), expected)


def test_instance_mapper_agrees_with_the_panoptic_one(cfg: CfgNode, panoptic_set, record: dict) -> None:
    register_coco_instances(
        "test_instances",
        image_root=panoptic_set.root / "train2017",
        json_file=panoptic_set.root / "annotations" / "instances_train2017.json",
    )
    try:
        instance_record = DatasetCatalog.get("test_instances")[0]
    finally:
        DatasetCatalog.remove("test_instances")
        MetadataCatalog.remove("test_instances")
    make_plain(cfg, "mask_former_instance")
    instances = build_mapper(cfg, True)(instance_record)["instances"]
    make_plain(cfg, "mask_former_panoptic")
    panoptic = build_mapper(cfg, True)(record)["instances"]
    things = panoptic[panoptic.gt_classes < len(THING_IDS)]
    assert torch.equal(instances.gt_classes, things.gt_classes)
    assert torch.equal(instances.gt_masks.tensor, things.gt_masks.tensor)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no COCO images in {REAL_DATA}")
@pytest.mark.parametrize("name", ["coco_panoptic_lsj", "mask_former_panoptic"])
def test_real_images(cfg: CfgNode, name: str) -> None:
    register_coco_panoptic(
        "test_coco",
        image_root=REAL_DATA / "train2017",
        panoptic_root=REAL_DATA / "panoptic_train2017",
        panoptic_json=REAL_DATA / "annotations" / "panoptic_train2017.json",
    )
    try:
        records = DatasetCatalog.get("test_coco")
        metadata = MetadataCatalog.get("test_coco")
        classes = metadata.stuff_classes, metadata.thing_classes
    finally:
        DatasetCatalog.remove("test_coco")
        MetadataCatalog.remove("test_coco")
    assert tuple(map(len, classes)) == (133, 80)
    assert os.path.basename(records[0]["file_name"]) == "000000000030.jpg"
    make_plain(cfg, name)
    mapper = build_mapper(cfg, True)
    for record in records:
        instances = mapper(record)["instances"]
        kept = [item for item in record["segments_info"] if not item["iscrowd"]]
        if name == "mask_former_panoptic":
            assert instances.gt_classes.tolist() == [item["category_id"] for item in kept]
            assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [item["area"] for item in kept]
        assert len(instances) <= len(kept)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[float("nan"), 0, 2, 0, 2, 2]], "object 1 of 1: a polygon with coordinates that are no numbers"),
        ([[1e9, 1e9, 2, 0, 2, 2]], "object 1 of 1: a polygon with coordinates .* beyond"),
        ({"size": [1 << 33, 1], "counts": "0"}, "object 1 of 1: run lengths of size"),
        ({"size": [6, 8], "counts": "zzzzzzzz"}, "run lengths that do not add up"),
        (None, "object 1 of 1: object of type 'NoneType' has no len"),
    ],
)
def test_what_fails_names_file_and_image(tmp_path: Path, segmentation: Any, message: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
    cfg = mask2former.get_cfg()
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    cfg.INPUT.IMAGE_SIZE = 32
    record = {
        "file_name": str(path),
        "image_id": 7,
        "annotations": [{"segmentation": segmentation, "category_id": 0}],
    }
    with pytest.raises(DataError, match=rf"a\.jpg \(image 7\): {message}"):
        build_mapper(cfg, is_train=True)(record)
