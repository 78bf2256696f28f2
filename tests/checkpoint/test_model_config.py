"""Checkpoints say which model they belong to: training's, published ones, and those of transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from mask2former import Predictor, get_cfg
from mask2former.checkpoint import CheckpointError, checkpoint_config, load_weights, read_checkpoint, save_transformers
from mask2former.checkpoint.description import describe
from mask2former.checkpoint.published import published_models
from mask2former.checkpoint.reader import read_description
from mask2former.d2.modeling import build_model
from mask2former.version import __version__
from tests.helpers.models import small_cfg
from tests.helpers.transformers_models import our_cfg, their_model

CATEGORIES = [
    {"id": 7, "name": "boat", "isthing": 1, "color": [1, 2, 3]},
    {"id": 3, "name": "water", "isthing": 0, "color": [4, 5, 6]},
]
R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep"


def described(path: Path, **changes: object) -> dict[str, object]:
    """Write a checkpoint as training does, with `changes`, and return its content."""
    cfg = small_cfg(
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=2,
        DATASETS__TRAIN=("of_another_machine",),
        DATASETS__TEST=("of_another_machine_too",),
        OUTPUT_DIR="/nowhere/output",
        INPUT__MIN_SIZE_TEST=48,
    )
    cfg.MODEL.CATEGORIES = CATEGORIES
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    torch.manual_seed(0)
    content = {"model": build_model(cfg).state_dict(), **describe(cfg), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return content


def test_a_checkpoint_alone_makes_a_predictor(tmp_path: Path) -> None:
    described(tmp_path / "model.pth")
    moved = tmp_path / "elsewhere" / "boats.pth"
    moved.parent.mkdir()
    shutil.move(tmp_path / "model.pth", moved)
    content = torch.load(moved, weights_only=True)
    assert (content["version"], content["task"]) == (__version__, "panoptic")
    assert content["categories"] == CATEGORIES

    predictor = Predictor.from_checkpoint(moved, device="cpu", input_format="RGB")
    assert predictor.metadata.stuff_classes == ["boat", "water"]
    assert predictor.metadata.stuff_colors == [[1, 2, 3], [4, 5, 6]]
    assert predictor.metadata.thing_dataset_id_to_contiguous_id == {7: 0}
    assert predictor.model.thing_ids == {0}
    assert predictor.cfg.INPUT.MIN_SIZE_TEST == 48
    assert predictor.cfg.OUTPUT_DIR == get_cfg().OUTPUT_DIR
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, content["model"][name]), name
    assert {"panoptic_seg", "sem_seg"} <= predictor(np.zeros((40, 60, 3), np.uint8)).keys()


def test_the_description_is_read_without_the_weights(tmp_path: Path) -> None:
    described(tmp_path / "model.pth", optimizer={"state": torch.ones(3)})
    description = read_description(tmp_path / "model.pth")
    assert "model" not in description
    assert description["categories"] == CATEGORIES
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_description(tmp_path / "old.pth") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_yaml": None}, "does not say which model it belongs to"),
        ({"config_yaml": "MODEL: [unclosed"}, "(?s)a config that cannot be used.*Name a config file too"),
        ({"config_yaml": "MODEL: {DEPHT: 3}", "version": "99.0"}, "MODEL.DEPHT.*written by version 99.0"),
        ({"config_yaml": "MODEL: !!python/object/apply:os.system ['false']"}, "cannot be used"),
        ({"config_yaml": 5}, "cannot be used"),
        ({"categories": [5]}, "cannot be used"),
    ],
)
def test_a_description_that_cannot_be_used(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    described(tmp_path / "model.pth", **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_config(tmp_path / "model.pth")


def test_published_models_have_the_config_of_the_zoo(tmp_path: Path) -> None:
    address = published_models()[R50].checkpoint
    file = tmp_path / address.rpartition("/")[2]
    for weights in (f"zoo://{R50}", address, str(file)):
        cfg = checkpoint_config(weights)
        assert weights == cfg.MODEL.WEIGHTS
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 133
        assert cfg.MODEL.RESNETS.DEPTH == 50
    with pytest.raises(CheckpointError, match="no published model is named"):
        checkpoint_config("zoo://coco/nothing")
    with pytest.raises(FileNotFoundError):
        checkpoint_config(tmp_path / "none.pth")


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_a_folder_of_transformers_says_which_model_it_holds(backbone: str, tmp_path: Path) -> None:
    theirs = their_model(backbone, num_classes=3)
    theirs.config.id2label = {0: "cat", 1: "dog", 2: "sky"}
    folder = tmp_path / "pets-instance"
    theirs.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    processor = transformers.Mask2FormerImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
    processor.save_pretrained(folder)
    cfg = checkpoint_config(folder)
    assert [category["name"] for category in cfg.MODEL.CATEGORIES] == ["cat", "dog", "sky"]
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (64, 96)
    np.testing.assert_allclose(cfg.MODEL.PIXEL_MEAN, [127.5, 102, 76.5])
    np.testing.assert_allclose(cfg.MODEL.PIXEL_STD, [51, 51, 25.5])
    test = cfg.MODEL.MASK_FORMER.TEST
    assert (test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON) == (False, True, False)

    predictor = Predictor.from_checkpoint(folder, device="cpu", input_format="RGB")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert len(predictor(image)["instances"]) > 0
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    with torch.no_grad():
        expected = theirs(pixel_values=(pixels - mean) / std)
        features = predictor.model.backbone((pixels - mean) / std)
        ours = predictor.model.sem_seg_head(features)
    torch.testing.assert_close(ours["pred_logits"], expected.class_queries_logits, rtol=1e-3, atol=1e-3)


def test_classes_of_published_models_of_transformers_are_things_or_stuff_as_in_their_data_sets(tmp_path: Path) -> None:
    theirs = their_model("swin", num_classes=19)
    table = Path("mask2former/data/datasets/categories/cityscapes_19.json")
    known = json.loads((Path(__file__).parents[2] / table).read_text())
    theirs.config.id2label = {i: category["name"] for i, category in enumerate(known)}
    theirs.save_pretrained(tmp_path / "streets")
    categories = checkpoint_config(tmp_path / "streets").MODEL.CATEGORIES
    assert [(c["name"], c["isthing"], c["color"]) for c in categories] == [
        (c["name"], c["isthing"], c["color"]) for c in known
    ]


def test_a_folder_that_we_wrote_for_transformers_says_everything(tmp_path: Path) -> None:
    cfg = our_cfg("resnet", num_classes=2)
    cfg.MODEL.CATEGORIES = CATEGORIES
    cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.65  # of which transformers knows nothing
    weights = build_model(cfg).state_dict()
    save_transformers(tmp_path / "ours", cfg, weights, ["boat", "water"])
    found = checkpoint_config(tmp_path / "ours")
    assert found.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD == 0.65
    assert found.MODEL.CATEGORIES == CATEGORIES
    load_weights(build_model(found), tmp_path / "ours", strict=True)
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "ours")
    assert theirs.config.id2label == {0: "boat", 1: "water"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "must name the classes 0, 1"),
        ({"backbone_config": {"model_type": "vit"}}, "backbone of type 'vit'"),
        ({"backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}}, "none of ours has"),
        ({"num_queries": "many"}, "settings that cannot be used.*NUM_OBJECT_QUERIES"),
    ],
)
def test_a_folder_of_a_model_that_is_not_ours(tmp_path: Path, change: dict[str, object], message: str) -> None:
    config = their_model("swin", num_classes=2).config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        checkpoint_config(tmp_path)


def test_other_programs_read_the_same_file(tmp_path: Path) -> None:
    described(tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth")["task"] == "panoptic"
