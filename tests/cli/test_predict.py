"""`mask2former predict`: from a checkpoint and images to pictures and COCO's formats."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from mask2former.checkpoint.description import describe
from mask2former.cli.commands import main
from mask2former.d2.modeling import build_model
from mask2former.data.images import rgb_to_id
from mask2former.predict.inputs import Picture
from tests.helpers.brightness_model import brightness_config
from tests.helpers.models import small_cfg

CATEGORIES = [
    {"id": 7, "name": "boat", "isthing": 1, "color": [200, 30, 30]},
    {"id": 3, "name": "water", "isthing": 0, "color": [30, 30, 200]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a model that finds what is bright, a good image and a broken one, in a folder of their own."""
    cfg = brightness_config()
    cfg.MODEL.CATEGORIES = CATEGORIES
    torch.save({"model": {"threshold": torch.tensor(100.0)}, **describe(cfg)}, tmp_path / "model.pth")
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, 30:] = 200
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "a.png")
    return tmp_path


def run(folder: Path, *words: str, status: int = 0) -> Path:
    output = folder / "out"
    inputs = ["--input", str(folder / "images"), "--output", str(output)]
    with pytest.raises(SystemExit) as end:
        main(["predict", "--weights", str(folder / "model.pth"), *inputs, *words])
    assert (end.value.code or 0) == status
    return output


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_instances_are_a_file_of_coco(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run(folder, "--task", "instance")
    assert names(output) == ["a.png", "instances.json", "predictions.jsonl"]
    coco = COCO(str(output / "instances.json"))
    (image,) = coco.imgs.values()
    assert image == {"id": 1, "file_name": (folder / "images" / "a.png").as_posix(), "height": 40, "width": 60}
    assert [annotation["score"] for annotation in coco.anns.values()] == pytest.approx([0.9, 0.7, 0.5])
    for number, annotation in coco.anns.items():
        assert (annotation["id"], annotation["image_id"], annotation["category_id"]) == (number, 1, 7)
        assert (annotation["bbox"], annotation["area"]) == ([30, 0, 30, 40], 1200)
        np.testing.assert_array_equal(coco.annToMask(annotation)[20], [0] * 30 + [1] * 30)
        assert mask_util.area(annotation["segmentation"]) == 1200
    assert coco.dataset["categories"] == CATEGORIES
    assert "1 predictions in" in capsys.readouterr().out


def test_panoptic_ids_are_those_of_the_file(folder: Path) -> None:
    output = run(folder, "--task", "panoptic")
    assert names(output) == ["a.png", "panoptic.json", "panoptic/a.png", "predictions.jsonl"]
    content = read(output / "panoptic.json")
    (annotation,) = content["annotations"]
    ids = rgb_to_id(np.asarray(Image.open(output / "panoptic" / annotation["file_name"])))
    np.testing.assert_array_equal(ids[20], [0] * 30 + [1] * 30)
    assert annotation["segments_info"] == [
        {"id": 1, "category_id": 7, "area": 1200, "bbox": [30.0, 0.0, 30.0, 40.0], "iscrowd": 0}
    ]
    assert content["categories"] == CATEGORIES


def test_semantic_pixels_are_places_in_the_output(folder: Path) -> None:
    output = run(folder, "--no-pictures")  # the one output that the config turns on
    assert names(output) == ["predictions.jsonl", "semantic.json", "semantic/a.png"]
    content = read(output / "semantic.json")
    assert content["annotations"] == [{"image_id": 1, "file_name": "a.png"}]
    labels = np.asarray(Image.open(output / "semantic" / "a.png"))
    np.testing.assert_array_equal(labels[20], [1] * 30 + [0] * 30)
    assert [(category["id"], category["name"]) for category in content["categories"]] == [(0, "boat"), (1, "water")]


def test_what_cannot_be_read_is_skipped_and_the_rest_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images" / "b.png").write_bytes(b"no image")
    shutil.copy(folder / "images" / "a.png", folder / "images" / "a.jpg")  # another image of that name
    output = run(folder, status=1)
    assert names(output) == [
        *("a.png", "a_2.png", "predictions.jsonl"),
        *("semantic.json", "semantic/a.png", "semantic/a_2.png"),
    ]
    assert [image["id"] for image in read(output / "semantic.json")["images"]] == [1, 2]
    text = capsys.readouterr()
    assert "b.png" in text.err
    assert "2 predictions in" in text.out
    assert "1 images skipped" in text.out


def test_an_interrupted_run_keeps_what_was_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(folder / "images" / "a.png", folder / "images" / "b.png")
    from mask2former.predict import run as runs

    def read_file(path: Path) -> Picture:
        if path.name == "b.png":
            raise KeyboardInterrupt
        return Picture(np.zeros((40, 60, 3), np.uint8), path.as_posix())

    monkeypatch.setattr(runs, "read_file", read_file)
    output = run(folder, status=130)
    assert [image["file_name"] for image in read(output / "semantic.json")["images"]] == [
        (folder / "images" / "a.png").as_posix()
    ]


def test_averaged_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--ema", status=1)
    assert "holds no average of weights" in capsys.readouterr().err
    content = torch.load(folder / "model.pth", weights_only=True)
    torch.save({**content, "ema_state": {"threshold": torch.tensor(250.0)}}, folder / "model.pth")
    output = run(folder, "--ema", "--task", "panoptic")  # nothing is that bright
    assert read(output / "panoptic.json")["annotations"][0]["segments_info"] == []
    run(folder, "--task", "panoptic", status=1)
    assert "made with other settings (config)" in capsys.readouterr().err
    run(folder, "--task", "panoptic", "--overwrite")
    assert len(read(output / "panoptic.json")["annotations"][0]["segments_info"]) == 1


def test_a_second_call_and_batches(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "bc":
        shutil.copy(folder / "images" / "a.png", folder / "images" / f"{name}.png")
    first = read(run(folder, "--batch-size", "2") / "semantic.json")
    assert [image["id"] for image in first["images"]] == [1, 2, 3]
    run(folder)
    assert "3 predictions (3 from before) in" in capsys.readouterr().out
    run(folder, "--batch-size", "0", status=2)


def test_random_heads_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = small_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=2)
    weights = build_model(cfg).state_dict()
    del weights["sem_seg_head.predictor.class_embed.bias"]
    torch.save({"model": weights, **describe(cfg)}, folder / "model.pth")
    run(folder, status=1)
    assert "does not complete the model, a part of which would have random weights" in capsys.readouterr().err
    run(folder, "--allow-missing-weights")


def test_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images" / "a.png").unlink()
    run(folder, status=2)
    assert "no images in" in capsys.readouterr().err
    torch.save({"model": {"threshold": torch.tensor(1.0)}}, folder / "model.pth")
    run(folder, status=1)
    assert "model.pth does not say which model it belongs to" in capsys.readouterr().err
