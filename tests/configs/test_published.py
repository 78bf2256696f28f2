"""The config files say what was published, and say it once.

`tests/golden/model_zoo.json` holds the published facts: of each config the number of parameters, the number of
entries of the state dict and the hash of their names and shapes; the settings that all share; and for each other
setting its values, and for each config, in order, a digit that points at one of them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as FvcoreCfgNode

from mask2former import get_cfg
from mask2former.d2.config import CfgNode
from mask2former.d2.config_file import load_config_file, merge_config_file, parse_yaml
from mask2former.d2.modeling import build_model
from mask2former.engine.model_choice import SMALL_MODEL

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
ALL_FILES = sorted(CONFIGS.rglob("*.yaml"))
GOLDEN: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "model_zoo.json").read_text("utf-8"))
PUBLISHED = list(GOLDEN["configs"])

_PIXEL_DECODER = "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"
_STANDARD_DECODER: list[Any] = ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"]
_STANDARD_DECODER += ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "MODEL.MASK_FORMER.DEC_LAYERS", 6]
_PER_PIXEL: list[Any] = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", _PIXEL_DECODER, "BasePixelDecoder"]
OTHERS: list[tuple[list[Any], int, str]] = [
    ([_PIXEL_DECODER, "BasePixelDecoder"], 464, "730c958b8163e2fd"),
    ([_PIXEL_DECODER, "TransformerEncoderPixelDecoder"], 538, "29e981339a904d37"),
    ([_PIXEL_DECODER, "BasePixelDecoder", *_STANDARD_DECODER], 410, "548c26e91dbb8891"),
    (["MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead", *_PER_PIXEL], 290, "d8189bb8d7daa14c"),
    (
        ["MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead", *_PER_PIXEL, *_STANDARD_DECODER],
        407,
        "75238887667d198d",
    ),
]
"""Changes of the COCO panoptic R50 config, and the published model's entries and hash."""


def _name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def _settings(name: str) -> dict[str, Any]:
    """The published settings, by full key."""
    index = PUBLISHED.index(name)
    varying = {key: entry["values"][int(entry["of_config"][index])] for key, entry in GOLDEN["varying"].items()}
    return GOLDEN["common"] | varying


def _flat(node: dict[str, Any], parents: str = "") -> dict[str, Any]:
    """Values by full key; tuples as lists."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{parents}{key}.")
        else:
            values[f"{parents}{key}"] = list(value) if isinstance(value, tuple) else value
    return values


def _merged(name: str) -> CfgNode:
    cfg = get_cfg()
    merge_config_file(cfg, CONFIGS / f"{name}.yaml")
    return cfg


def _layers(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A file's bases, deepest first, then the file: each with what it states itself."""
    content = parse_yaml(path.read_text(encoding="utf-8"))
    bases = content.pop(BASE_KEY, [])
    layers = []
    for base in bases if isinstance(bases, list) else [bases]:
        layers += _layers((path.parent / base).resolve())
    return [*layers, (path, _flat(content))]


def _figures(cfg: CfgNode) -> tuple[int, int, str]:
    """Parameters of the model, entries of its state dict, and the hash of their names and shapes."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    shapes = sorted((key, list(value.shape)) for key, value in model.state_dict().items())
    text = "\n".join(f"{key}:{shape}" for key, shape in shapes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, len(shapes), hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_published(name: str) -> None:
    merged, expected = _flat(_merged(name)), _settings(name)
    assert {key: merged.get(key) for key in expected} == expected
    # What was not published has its default.
    defaults = _flat(get_cfg())
    assert {key for key in merged if merged[key] != defaults[key]} <= set(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_are_those_published(name: str) -> None:
    parameters, entries, digest = _figures(_merged(name))
    assert [parameters, entries, digest] == GOLDEN["configs"][name]


@pytest.mark.parametrize(("changes", "entries", "digest"), OTHERS)
def test_models_of_other_components_are_those_published(changes: list[Any], entries: int, digest: str) -> None:
    cfg = _merged("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep")
    cfg.merge_from_list(changes)
    assert _figures(cfg)[1:] == (entries, digest)


@pytest.mark.parametrize("path", ALL_FILES, ids=_name)
def test_nothing_is_stated_twice(path: Path) -> None:
    layers = _layers(path)
    files = [file for file, _ in layers]
    assert len(files) == len(set(files)), "the same base is reached by two ways"
    merged: dict[str, Any] = {}
    for file, settings in layers:
        repeated = [key for key, value in settings.items() if key in merged and merged[key] == value]
        assert not repeated, f"{_name(file)} repeats what its bases say"
        merged |= settings


@pytest.mark.parametrize("path", ALL_FILES, ids=_name)
def test_every_file_merges_and_detectron2_reads_the_same(path: Path) -> None:
    merge_config_file(get_cfg(), path)
    # Detectron2's loader is fvcore's; it understands lists of bases since 2021.
    assert FvcoreCfgNode.load_yaml_with_base(str(path)) == load_config_file(path)


def test_every_file_is_of_use() -> None:
    """A file is a published config, a base of another file, the quickstart, or what own data take on a CPU."""
    bases = {base for path in ALL_FILES for base, _ in _layers(path)[:-1]}
    names = {_name(path) for path in ALL_FILES if path not in bases}
    leaves = names - {"quickstart/panoptic", SMALL_MODEL}
    assert leaves <= set(PUBLISHED)
    assert set(PUBLISHED) <= {_name(path) for path in ALL_FILES}
