import json

import pytest
import torch
import transformers

from mask2former.checkpoint import CheckpointError, load_weights
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.modeling import build_model
from tests.helpers.transformers_models import our_cfg
from tools.convert_to_transformers import main

DATASET = "test_convert_to_transformers"


@pytest.fixture
def config(tmp_path):
    DatasetCatalog.register(DATASET, list)
    MetadataCatalog.get(DATASET).set(thing_classes=["a"], stuff_classes=["a", "b", "c"])
    cfg = our_cfg("resnet", num_classes=3, DATASETS__TRAIN=(DATASET,))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save(build_model(cfg).state_dict(), tmp_path / "weights.pth")
    yield cfg
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def test_folder_that_both_read(config, tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("config.yaml", "weights.pth", "new")]
    main([*paths, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "99"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'new'}\n"
    theirs = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "new")
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert theirs.config.train_num_points == 99
    ours = build_model(config)
    load_weights(ours, tmp_path / "new", strict=True)
    original = torch.load(tmp_path / "weights.pth")
    assert all(torch.equal(value, original[name]) for name, value in ours.state_dict().items())


def test_unknown_data_set_gives_numbered_labels(config, tmp_path):
    paths = [str(tmp_path / name) for name in ("config.yaml", "weights.pth", "new")]
    main([*paths, "DATASETS.TRAIN", "('unknown',)"])
    assert json.loads((tmp_path / "new" / "config.json").read_text())["id2label"]["2"] == "LABEL_2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"], "does not fit the model exactly"),
        (["MODEL.RESNETS.STEM_TYPE", "deeplab"], "STEM_TYPE is 'deeplab'"),
        (["MODEL.RESNETS.DEPHT", "18"], "DEPTH"),
    ],
)
def test_errors_write_nothing(config, tmp_path, options, message):
    paths = [str(tmp_path / name) for name in ("config.yaml", "weights.pth", "new")]
    with pytest.raises((CheckpointError, KeyError, ValueError), match=message):
        main([*paths, *options])
    assert not (tmp_path / "new").exists()
