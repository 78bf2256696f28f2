"""What is promised of the package as a whole: what it carries, needs and imports, and how it is written."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mask2former"
CONFIGS = ROOT / "configs"
SOURCES = sorted(PACKAGE.rglob("*.py"))
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}

# Brought by PyTorch wherever it works.
WITH_PYTORCH = {"triton"}

# Imports go down this list only.
LAYERS = [
    "mask2former",
    "mask2former.cli",
    "mask2former.benchmarks",
    "mask2former.analysis",
    "mask2former.dataset_check",
    "mask2former.predict",
    "mask2former.model_zoo",
    "mask2former.engine",
    "mask2former.report",
    "mask2former.evaluation",
    "mask2former.tiling",
    "mask2former.export",
    "mask2former.checkpoint",
    "mask2former.visualization",
    "mask2former.data",
    "mask2former.modeling",
    "mask2former.ops",
    "mask2former.config",
    "mask2former.d2",
    "mask2former.files",
    "mask2former.similar",
    "mask2former.version",
    "mask2former.cli.arguments",
]

MAX_LINES = 450

# Of the files that belong to the package.
SUFFIXES = (".py", ".json", ".tsv", ".css", ".cpp", ".h", ".cu", ".cuh")


def _short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a source file imports, inside functions too."""
    package = _module(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, node.module] if node.module else base)
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)


def _foreign(path: Path) -> set[str]:
    """Top-level names that a source file imports and that are neither Python's nor ours."""
    roots = {name.partition(".")[0] for _, name in _imports(path)}
    return roots - sys.stdlib_module_names - {"mask2former", "tools", "datasets"}


def _layer(module: str) -> int:
    """Position in LAYERS: of the room that `module` is in, or of the package itself."""
    rooms = [i for i, room in enumerate(LAYERS) if f"{module}.".startswith(f"{room}.")]
    return max(rooms, key=lambda i: len(LAYERS[i]), default=0)


def _normalise(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _build_wheel(folder: Path, **environment: str) -> Path:
    """Build a wheel, from a copy so that no build folder is left in the tree."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(PACKAGE, folder / "source" / "mask2former", ignore=ignored)
    shutil.copytree(CONFIGS, folder / "source" / "configs")
    for name in ("pyproject.toml", "setup.py", "mask2former_cli.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", ".."]
    result = subprocess.run(
        command, cwd=folder / "source", env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("mask2former-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel without the compiled op, as without PyTorch in the environment that builds it."""
    path = _build_wheel(tmp_path_factory.mktemp("wheel"), MASK2FORMER_OPS="reference")
    assert path.name.endswith("-none-any.whl"), "the wheel must not depend on a compiler"
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel_metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_wheel_carries_all_modules_and_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    kept = [p for p in PACKAGE.rglob("*") if p.suffix in SUFFIXES or p.name == "py.typed"]
    assert {_short(path) for path in kept} <= names
    assert {name.removeprefix("mask2former/") for name in names if name.endswith(".yaml")} == {
        _short(path) for path in CONFIGS.rglob("*.yaml")
    }
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "mask2former",
        "mask2former_cli.py",
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_carries_the_compiled_op(tmp_path: Path) -> None:
    """Where the environment that builds it has PyTorch and a compiler; here one that only writes what `-o` names."""
    compiler = tmp_path / "c++"
    loop = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo compiled > "$2"; shift; done; exit 0'
    compiler.write_text(f"#!/bin/sh\n{loop}\n")
    compiler.chmod(0o755)
    path = _build_wheel(tmp_path, MASK2FORMER_OPS="compiled", CXX=str(compiler), FORCE_CUDA="0")
    assert re.search(r"-py3-none-linux_\w+\.whl$", path.name), "a wheel with machine code is for one platform"
    (library,) = (name for name in zipfile.ZipFile(path).namelist() if name.endswith(".so"))
    assert library.startswith("mask2former/ops/ms_deform_attn-")


def test_wheel_does_not_need_the_compiled_op(tmp_path: Path) -> None:
    path = _build_wheel(tmp_path, MASK2FORMER_OPS="auto", CXX="/bin/false")
    assert path.name.endswith("-none-any.whl")


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=_short)
def test_every_folder_with_modules_is_a_package(folder: Path) -> None:
    assert (folder / "__init__.py").is_file()


def test_declared_dependencies_are_those_imported(wheel_metadata: Message) -> None:
    requirements = [line for line in wheel_metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    declared = {_normalise(re.split(r"[^\w.-]", line)[0]) for line in requirements}
    # `detectron2` is the choice that `mask2former.d2` makes at run time, hence an extra; with the last two benchmarks
    # compare where they are installed.
    optional = {"detectron2", *WITH_PYTORCH, "transformers", "torch_ms_deform_attn"}
    scripts = [path for name in ("tools", "datasets") for path in (ROOT / name).glob("*.py")]
    imported = {name for path in [*SOURCES, *scripts] for name in _foreign(path)} - optional
    if any(name.startswith("torch.utils.tensorboard") for path in SOURCES for _, name in _imports(path)):
        imported.add("tensorboard")
    used = {_normalise(DISTRIBUTIONS.get(name, name)) for name in imported}
    assert used == declared


@pytest.mark.parametrize("path", SOURCES, ids=_short)
def test_imports_go_down(path: Path) -> None:
    own = _layer(_module(path))
    up = [
        f"{_short(path)}:{line} imports {name}"
        for line, name in _imports(path)
        if name.partition(".")[0] == "mask2former" and _layer(name) < own
    ]
    assert not up, "imports go down LAYERS only"


@pytest.mark.parametrize("path", [p for p in SOURCES if PACKAGE / "d2" not in p.parents], ids=_short)
def test_only_the_door_imports_detectron2(path: Path) -> None:
    names = {name for _, name in _imports(path)}
    assert not {name for name in names if name.startswith(("detectron2", "mask2former.d2.bundled"))}


def test_import_is_light() -> None:
    """Neither optional nor slow packages are imported before they are needed."""
    code = "import json, sys, mask2former; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "MASK2FORMER_D2": "bundled"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    heavy = {"detectron2", "transformers", "tensorboard", "tensorflow", "matplotlib", "panopticapi"}
    assert heavy.isdisjoint(json.loads(result.stdout))


@pytest.mark.parametrize("path", SOURCES, ids=_short)
def test_source_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except")
        forbidden = ("eval", "exec") if path.parent == PACKAGE / "cli" else ("print", "eval", "exec")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in forbidden:
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}()")
        names = {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()
        if getattr(getattr(node, "func", None), "attr", "") in ("read_text", "write_text") and "encoding" not in names:
            found.append(f"line {node.lineno}: text in the encoding of the system")  # type: ignore[attr-defined]
    if text.count("\n") > MAX_LINES:
        found.append(f"{text.count(chr(10))} lines, more than {MAX_LINES}")
    assert not found


@pytest.mark.parametrize("guide", GUIDES, ids=_short)
def test_guides_name_what_exists(guide: Path) -> None:
    """Make targets and the repository's files that a guide names."""
    text = guide.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    files = re.findall(r"\b(?:configs|datasets|docs|mask2former|tests|tools)/[\w/.-]+\.(?:py|yaml|md)\b", text)
    assert not [name for name in files if not (ROOT / name).is_file()]
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert not [name for name in links if not (guide.parent / name).exists()]


def test_pre_commit_runs_the_checks_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    assert [hook["entry"] for hook in hooks] == re.findall(r"^\t\$\(BIN\)/(.+)$", recipe[1], re.MULTILINE)


def test_version_is_the_same_everywhere(wheel_metadata: Message) -> None:
    import mask2former

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert mask2former.__version__ == citation["version"] == wheel_metadata["Version"]
