"""Which objects the door hands out, and what it says when it cannot."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mask2former.d2 as door

ROOT = Path(door.__file__).parents[2]
MODULES = [path.stem for path in Path(door.__file__).parent.glob("*.py") if path.stem != "__init__"]


def _open_door(folder: Path, choice: str | None) -> subprocess.CompletedProcess[str]:
    """Run the door's `__init__` alone in a new process that finds packages in `folder` first."""
    code = f"import runpy; print(runpy.run_path({door.__file__!r})['SOURCE'])"
    env = {name: value for name, value in os.environ.items() if name != "MASK2FORMER_D2"}
    env |= {"PYTHONPATH": str(folder)} | ({"MASK2FORMER_D2": choice} if choice else {})
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)


def _make_detectron2(folder: Path, init: str) -> None:
    (folder / "detectron2").mkdir()
    (folder / "detectron2" / "__init__.py").write_text(init)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_exports_what_it_promises(module: str) -> None:
    exports = importlib.import_module(f"mask2former.d2.{module}")
    assert exports.__all__
    assert all(getattr(exports, name) is not None for name in exports.__all__)


def test_every_name_is_written_once_and_used() -> None:
    """The door carries nothing that neither the library nor a test, as a plug-in would, takes from it."""
    used = {
        node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else node.name
        for path in [*ROOT.glob("mask2former/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("tools/**/*.py")]
        if path.parent != Path(door.__file__).parent and "bundled" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name | ast.alias)
    }
    for module in MODULES:
        exports = importlib.import_module(f"mask2former.d2.{module}")
        text = Path(exports.__file__).read_text(encoding="utf-8")
        assert not set(exports.__all__) - used
        if module not in ("config_file", "registry"):
            assert [name for name in exports.__all__ if len(re.findall(rf"\b{name}\b", text)) > 1] == []


@pytest.mark.parametrize(
    ("wanted", "installed", "source"),
    [
        ("auto", True, "official"),
        ("auto", False, "bundled"),
        ("official", True, "official"),
        ("bundled", True, "bundled"),
        ("bundled", False, "bundled"),
    ],
)
def test_choice(wanted: str, installed: bool, source: str) -> None:
    assert door._choose_source(wanted, installed) == source


def test_unknown_choice_is_refused(tmp_path: Path) -> None:
    result = _open_door(tmp_path, "offical")
    assert result.returncode != 0
    assert "MASK2FORMER_D2='offical' is unknown: use auto, official or bundled" in result.stderr


def test_official_without_detectron2_says_how_to_get_it() -> None:
    with pytest.raises(ImportError, match=r"not installed.*pip install.*detectron2.*MASK2FORMER_D2=bundled"):
        door._choose_source("official", installed=False)


@pytest.mark.parametrize("choice", [None, "auto", "official"])
def test_broken_detectron2_is_an_error_with_its_cause(tmp_path: Path, choice: str | None) -> None:
    _make_detectron2(tmp_path, "raise OSError('libcudart.so.99 not found')")
    result = _open_door(tmp_path, choice)
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert "libcudart.so.99 not found" in result.stderr
    assert "MASK2FORMER_D2=bundled" in result.stderr


def test_broken_detectron2_can_be_left_aside(tmp_path: Path) -> None:
    _make_detectron2(tmp_path, "raise OSError('libcudart.so.99 not found')")
    assert _open_door(tmp_path, "bundled").stdout.strip() == "bundled"


def test_a_mere_folder_named_detectron2_is_not_detectron2(tmp_path: Path) -> None:
    if door._is_installed():
        pytest.skip("Detectron2 is installed")
    (tmp_path / "detectron2").mkdir()
    assert _open_door(tmp_path, None).stdout.strip() == "bundled"


def test_names_are_detectron2s_own() -> None:
    if door.SOURCE != "official":
        pytest.skip("Detectron2 is not in use")
    detectron2 = importlib.import_module("detectron2.modeling")
    ours = importlib.import_module("mask2former.d2.modeling")
    assert ours.META_ARCH_REGISTRY is detectron2.META_ARCH_REGISTRY
    assert importlib.import_module("mask2former.d2.data").MetadataCatalog is (
        importlib.import_module("detectron2.data").MetadataCatalog
    )


def test_backbone_of_detectron2s_deeplab_keeps_its_name() -> None:
    if door.SOURCE != "official":
        pytest.skip("Detectron2 is not in use")
    registry = importlib.import_module("mask2former.d2.modeling").BACKBONE_REGISTRY
    deeplab = importlib.import_module("detectron2.projects.deeplab")
    assert registry.get("build_resnet_deeplab_backbone") is deeplab.build_resnet_deeplab_backbone
