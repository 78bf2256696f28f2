"""From a folder to a config, and what stands in it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mask2former import get_cfg
from mask2former.d2.config_file import merge_config_file
from mask2former.data.images import DataError
from mask2former.engine import own_data
from mask2former.engine.own_data import Plan, Request, plan
from mask2former.engine.probe import Fit
from tests.helpers.blobs import make_instances, make_label_maps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_instances(tmp_path / "blobs")


def made(folder: Path, tmp_path: Path, *opts: str, **request: Any) -> Plan:
    asked = Request(data=str(folder), output=str(tmp_path / "run"), from_scratch=True, opts=opts)
    return plan(Request(**{**vars(asked), **request}), probe=False)


def loaded(path: Path) -> Any:
    cfg = get_cfg()
    merge_config_file(cfg, path)
    return cfg


def test_what_is_written_is_short_and_gives_the_same_config(folder: Path, tmp_path: Path) -> None:
    result = made(folder, tmp_path)
    path = result.write()
    assert path == tmp_path / "run" / "config.yaml"
    assert loaded(path) == result.cfg.clone()
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 50
    content = yaml.safe_load(text)
    assert Path(content["_BASE_"]).is_absolute()
    assert content["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 2
    assert "IGNORE_VALUE" not in content["MODEL"]["SEM_SEG_HEAD"]  # 255, as in the base
    assert "NUM_CLASSES: 2  # classes of the data" in text
    assert (tmp_path / "run" / "data.yaml").is_file()


def test_data_are_understood(folder: Path, tmp_path: Path) -> None:
    result = made(folder, tmp_path)
    assert (result.summaries["train"].images, result.summaries["train"].empty) == (6, 1)
    assert result.cfg.INPUT.DATASET_MAPPER_NAME == "coco_instance_lsj"
    assert result.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is False
    assert result.cfg.SOLVER.IMS_PER_BATCH == 4
    assert (len(result.cfg.DATASETS.TRAIN), len(result.cfg.DATASETS.TEST)) == (1, 1)
    result = made(make_label_maps(tmp_path / "maps"), tmp_path)
    assert result.cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_semantic"
    assert result.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_table_tells_values_and_reasons(folder: Path, tmp_path: Path) -> None:
    table = made(folder, tmp_path, "SOLVER.BASE_LR", "0.5").table()
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES 2 classes of the data" in rows
    assert "SOLVER.BASE_LR 0.5 given" in rows
    assert any(row.startswith("MODEL.WEIGHTS '' random, as --from-scratch asks") for row in rows)
    assert any("large" in row for row in rows)  # a class


def test_given_values_win_and_others_follow_them(folder: Path, tmp_path: Path) -> None:
    opts = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "40", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7")
    cfg = made(folder, tmp_path, *opts).cfg
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 40, 7)
    assert pytest.approx(0.0005) == cfg.SOLVER.BASE_LR  # 0.001 at 4
    assert cfg.SOLVER.WARMUP_ITERS == 2


def test_epochs(folder: Path, tmp_path: Path) -> None:
    assert made(folder, tmp_path, epochs=10).cfg.SOLVER.MAX_ITER == 15  # 6 images in batches of 4


def test_own_config_file_as_model_keeps_what_it_says(folder: Path, tmp_path: Path) -> None:
    base = Path(own_data.__file__).parents[2] / "configs/own_data/small.yaml"
    own = tmp_path / "mine.yaml"
    own.write_text(f"_BASE_: {base}\nSOLVER:\n  BASE_LR: 0.25\nINPUT:\n  IMAGE_SIZE: 96\n", encoding="utf-8")
    cfg = made(folder, tmp_path, model=str(own)).cfg
    assert (cfg.SOLVER.BASE_LR, cfg.INPUT.IMAGE_SIZE) == (0.25, 96)


def test_a_config_of_another_run_does_not_say_which_data(folder: Path, tmp_path: Path) -> None:
    path = made(folder, tmp_path, epochs=1).write()
    other = make_instances(tmp_path / "others", names=("a", "b", "c"))
    weights = str(tmp_path / "run/model_final.pth")
    asked = {"model": str(path), "from_scratch": False, "weights": weights, "output": str(tmp_path / "other")}
    cfg = made(other, tmp_path, epochs=10, **asked).cfg
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.DATASETS.TRAIN == ("others_train",)
    assert (str(tmp_path / "other"), weights, 15) == (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.SOLVER.MAX_ITER)


def test_what_was_written_is_taken_again(folder: Path, tmp_path: Path) -> None:
    first = made(folder, tmp_path)
    path = first.write()
    again = made(tmp_path / "run" / "data.yaml", tmp_path)
    assert again.cfg == first.cfg
    by_config = made(folder, tmp_path, model=str(path), from_scratch=False, output=str(tmp_path / "other"))
    assert by_config.cfg.SOLVER == first.cfg.SOLVER
    assert by_config.cfg.MODEL == first.cfg.MODEL
    with pytest.raises(ValueError, match="another --output"):
        made(folder, tmp_path, model=str(path), from_scratch=False)


def test_what_a_user_changed_is_kept(folder: Path, tmp_path: Path) -> None:
    path = made(folder, tmp_path).write()
    made(folder, tmp_path).write()
    assert not path.with_name("config.yaml.old").exists()
    path.write_text("mine", encoding="utf-8")
    made(folder, tmp_path).write()
    assert path.with_name("config.yaml.old").read_text(encoding="utf-8") == "mine"
    path.write_text("mine again", encoding="utf-8")
    made(folder, tmp_path).write()
    assert path.with_name("config.yaml.old").read_text(encoding="utf-8") == "mine"
    assert path.with_name("config.yaml.old2").read_text(encoding="utf-8") == "mine again"


def test_batch_is_measured_on_the_largest_crop_and_the_fullest_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(cfg: Any, worst: Any, limit: int, **_: Any) -> Fit:
        asked.append((tuple(worst), limit))
        return Fit(3, "as much as fits", 2.0)

    monkeypatch.setattr(own_data, "largest_batch", measured)
    request = Request(data=str(folder), output=str(tmp_path / "run"), from_scratch=True, epochs=10, processes=2)
    result = plan(request)
    side = result.cfg.INPUT.IMAGE_SIZE
    assert asked == [((side, side, 3), 2)]  # a batch of 4 at most, on two processes
    assert result.cfg.SOLVER.IMS_PER_BATCH == 6
    assert result.seconds == 2.0 * result.cfg.SOLVER.MAX_ITER
    assert "Training takes 1 min on this machine" in result.table()


def test_weights_of_classes_by_name(folder: Path, tmp_path: Path) -> None:
    file = made(folder, tmp_path).write().with_name("data.yaml")
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}class_weights: {{large: 3}}\n", encoding="utf-8")
    result = made(file, tmp_path)
    assert result.cfg.MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS == [1.0, 3.0]
    assert loaded(result.write()).MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS == [1.0, 3.0]
    assert "class_weights:\n  large: 3.0" in file.read_text(encoding="utf-8")
    assert made(folder, tmp_path).cfg.MODEL.MASK_FORMER.WEIGHT_OF_EACH_CLASS == []


@pytest.mark.parametrize(
    ("weights", "problem"),
    [("{larg: 3}", "no class 'larg'.*did you mean large"), ("{large: -1}", "large has -1"), ("[1, 3]", "no mapping"),
     ("{large: much}", "large has 'much'")],
)  # fmt: skip
def test_wrong_weights_of_classes(folder: Path, tmp_path: Path, weights: str, problem: str) -> None:
    file = made(folder, tmp_path).write().with_name("data.yaml")
    file.write_text(f"{file.read_text(encoding='utf-8')}class_weights: {weights}\n", encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        made(file, tmp_path)


def test_several_data_sets_with_ratios(folder: Path, tmp_path: Path) -> None:
    other = make_instances(tmp_path / "others", names=("large", "shell"))
    result = made(folder, tmp_path, data=[str(folder), f"{other}:0.3"])
    datasets = result.cfg.DATASETS
    assert (datasets.TRAIN, datasets.TEST) == (("blobs_train", "others_train"), ("blobs_val", "others_val"))
    assert (datasets.RATIOS, result.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == ((1.0, 0.3), 3)
    path = result.write()
    assert loaded(path) == result.cfg.clone()
    assert made(path.with_name("data.yaml"), tmp_path).cfg == result.cfg
    assert made(folder, tmp_path, model=str(path), output=str(tmp_path / "a")).cfg.DATASETS.RATIOS == ()
