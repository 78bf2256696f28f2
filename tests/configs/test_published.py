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

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
ALL_FILES = sorted(CONFIGS.rglob("*.yaml"))
GOLDEN: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "model_zoo.json").read_text("utf-8"))
PUBLISHED = list(GOLDEN["configs"])


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


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_published(name: str) -> None:
    merged, expected = _flat(_merged(name)), _settings(name)
    assert {key: merged.get(key) for key in expected} == expected
    # What was not published has its default.
    defaults = _flat(get_cfg())
    assert {key for key in merged if merged[key] != defaults[key]} <= set(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_are_those_published(name: str) -> None:
    cfg = _merged(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    shapes = sorted((key, list(value.shape)) for key, value in model.state_dict().items())
    text = "\n".join(f"{key}:{shape}" for key, shape in shapes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert [parameters, len(shapes), digest] == GOLDEN["configs"][name]


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
    """A file is a published config, a base of another file, or the quickstart."""
    bases = {base for path in ALL_FILES for base, _ in _layers(path)[:-1]}
    names = {_name(path) for path in ALL_FILES if path not in bases}
    leaves = names - {"quickstart/panoptic"}
    assert leaves <= set(PUBLISHED)
    assert set(PUBLISHED) <= {_name(path) for path in ALL_FILES}
