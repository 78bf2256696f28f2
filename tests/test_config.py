from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former import add_maskformer2_config, get_cfg
from mask2former.d2 import SOURCE
from mask2former.d2.config import CfgNode
from mask2former.d2.config import get_cfg as get_d2_cfg
from mask2former.d2.config_file import merge_config_file
from mask2former.d2.modeling import build_model
from mask2former.data.mappers import DATASET_MAPPER_REGISTRY, build_mapper
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.schedules import build_lr_scheduler
from mask2former.engine.setup import default_argument_parser
from mask2former.predict.predictor import Predictor
from tests.helpers.models import small_cfg
from tests.helpers.shapes import registered_shapes, shapes_cfg
from tests.helpers.training import restored_logging
from tools import train_net


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_completes_a_configuration_and_keeps_what_it_has() -> None:
    cfg = get_d2_cfg()
    cfg.SOLVER.POLY_LR_POWER = 0.5  # as Detectron2's DeepLab project does
    add_maskformer2_config(cfg)
    assert cfg.SOLVER.POLY_LR_POWER == 0.5
    assert set(leaves(cfg)) == set(leaves(get_cfg()))
    add_maskformer2_config(cfg)  # a second time changes nothing
    assert cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES == 100


def test_defaults_are_those_published() -> None:
    cfg = get_cfg()
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    assert (head.PIXEL_DECODER_NAME, head.TRANSFORMER_ENC_LAYERS) == ("BasePixelDecoder", 0)
    assert (node.TRANSFORMER_IN_FEATURE, node.NHEADS, node.DROPOUT) == ("res5", 8, 0.1)
    assert (head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS, head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS) == (8, 4)


def test_published_files_may_name_the_checkpointing_of_swin(tmp_path: Path) -> None:
    path = tmp_path / "swin.yaml"
    path.write_text("MODEL: {SWIN: {USE_CHECKPOINT: True, EMBED_DIM: 48}}")
    cfg = get_cfg()
    merge_config_file(cfg, path)
    assert cfg.MODEL.SWIN.EMBED_DIM == 48
    assert "USE_CHECKPOINT" not in cfg.MODEL.SWIN


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The full keys whose values are read, as in `cfg.SOLVER.BASE_LR`, in whichever copy of a configuration."""
    found: set[str] = set()
    getattr_of_node = CfgNode.__getattr__

    def recording(node: CfgNode, name: str) -> Any:
        value = getattr_of_node(node, name)
        place = node.__dict__.get("_place", "" if "VERSION" in node else None)
        if isinstance(value, CfgNode):
            value.__dict__["_place"] = None if place is None else f"{place}{name}."
        elif place is not None:
            found.add(place + name)
        return value

    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    return found


MODELS: list[dict[str, Any]] = [
    {"MODEL__RESNETS__DEPTH": 50},
    {"MODEL__BACKBONE__NAME": "build_resnet_deeplab_backbone"},
    {"MODEL__BACKBONE__NAME": "D2SwinTransformer", "MODEL__SWIN__EMBED_DIM": 12, "MODEL__SWIN__NUM_HEADS": [1] * 4},
    {"MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder"},
    {"MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "BasePixelDecoder"},
    {
        "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
        "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "res5",
    },
    {
        "MODEL__META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL__SEM_SEG_HEAD__NAME": "PerPixelBaselineHead",
        "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "BasePixelDecoder",
    },
]
SOLVERS: list[dict[str, Any]] = [
    {"SOLVER__OPTIMIZER": "SGD", "SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR"},
    {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR"},
    {"SOLVER__LR_SCHEDULER_NAME": "WarmupPolyLR"},
    {"SOLVER__LR_SCHEDULER_NAME": "WarmupOneCycleLR"},
]


@pytest.mark.skipif(SOURCE == "official", reason="Detectron2 has keys of its own that nothing here reads")
def test_every_key_is_read_by_something(reads: set[str], tmp_path: Path) -> None:
    """Everything that is registered is built, and a run trains, resumes, evaluates and predicts."""
    for changes in MODELS:
        build_model(small_cfg(**changes))
    for changes in SOLVERS:
        cfg = small_cfg(**changes)
        optimizer = build_optimizer(cfg, torch.nn.Linear(2, 2))
        build_lr_scheduler(cfg, optimizer)
    with registered_shapes(tmp_path, "config", train=2):
        _run(tmp_path)
    assert set(leaves(get_cfg())) - reads == {"VERSION"}  # which the merging of files looks at


def _run(folder: Path) -> None:
    """The tool's training and evaluation with all that can be switched on, every mapper, and a prediction."""
    cfg = shapes_cfg(
        "config_train",
        "config_train",
        SOLVER__MAX_ITER=1,
        SOLVER__CLIP_GRADIENTS__ENABLED=True,
        SOLVER__BEST_CHECKPOINT__METRIC="panoptic_seg/PQ",
        SOLVER__EARLY_STOP__METRIC="panoptic_seg/PQ",
        MODEL_EMA__ENABLED=True,
        TEST__EVAL_PERIOD=1,
        TEST__AUG__ENABLED=True,
        TEST__AUG__MIN_SIZES=(64,),
        OUTPUT_DIR=str(folder / "output"),
    )
    for name, _ in DATASET_MAPPER_REGISTRY:
        for is_train in (True, False):
            changes = {"INPUT__CROP__ENABLED": True, "INPUT__COLOR_AUG_SSD": True, "DATASETS__TRAIN": ("config_train",)}
            build_mapper(small_cfg(**changes, INPUT__DATASET_MAPPER_NAME=name), is_train)
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    parser = default_argument_parser()
    weights = str(folder / "output" / "model_final.pth")
    with restored_logging():
        train_net.main(parser.parse_args(["--config-file", str(folder / "config.yaml")]))
        arguments = ["--config-file", str(folder / "config.yaml"), "--eval-only", "MODEL.WEIGHTS", weights]
        train_net.main(parser.parse_args(arguments))
    cfg.MODEL.WEIGHTS = weights
    cfg.TEST.TILE_SIZE = 40
    Predictor(cfg)(np.zeros((64, 64, 3), np.uint8))
