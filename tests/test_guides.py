"""The guides' code runs as it stands, page by page and in order, with tiny models and data."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mask2former.data.images import id_to_rgb
from tests.helpers.guides import TINY, blocks_of, check_syntax, commands_of, tiny, write_file

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "datasets/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
FILES_OF = {"docs/custom_dataset.md": "docs/instances.md", "docs/fine_tuning.md": "docs/panoptic.md"}
"""Pages that continue with the files of another one."""
NEEDS = {"docs/export.md": "onnxruntime"}
"""Packages of extras that a page takes for installed."""
SHAPES = ["--root", "datasets/shapes", "--train", "4", "--val", "2", "--size", "64", "80", "--workers", "1"]


def write_data(folder: Path) -> None:
    """Three images and two, in the layouts that the pages on own data describe."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        coco = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "boat"}, {"id": 9, "name": "buoy"}]}
        things = [{"id": 20, "name": "bush", "isthing": 1}, {"id": 3, "name": "lawn", "isthing": 0}]
        panoptic = {"images": [], "annotations": [], "categories": [*things, {"id": 5, "name": "path", "isthing": 0}]}
        for index in range(count):
            labels = np.zeros((60, 80), np.uint8)
            labels[:, 40:] = 1
            labels[10:30, 10 + index : 40] = 2
            picture = (labels[..., None] * 90 + generator.integers(0, 60, (60, 80, 3))).astype(np.uint8)
            mask = np.where(labels == 2, 255, 0).astype(np.uint8)
            files = {f"boats/{split}": picture, f"garden/{split}": picture, f"fields/images/{split}": picture,
                     f"garden/panoptic_{split}": id_to_rgb(labels.astype(np.int64) + 1),
                     f"fields/labels/{split}": labels, f"cracks/masks/{split}": mask}  # fmt: skip
            for path, content in files.items():
                (folder / path).mkdir(parents=True, exist_ok=True)
                suffix = "jpg" if content is picture else "png"
                Image.fromarray(content).save(folder / path / f"{index}.{suffix}")
            image = {"id": index, "file_name": f"{index}.jpg", "height": 60, "width": 80}
            box = [10 + index, 10, 30 - index, 20]
            corners = [box[0], 10, 40, 10, 40, 30, box[0], 30]
            coco["images"].append(image)
            coco["annotations"].append(
                {"id": index, "image_id": index, "category_id": 9, "bbox": box, "segmentation": [corners]}
            )
            panoptic["images"].append(image)
            segments = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 5}, {"id": 3, "category_id": 20}]
            panoptic["annotations"].append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
        (folder / f"boats/{split}.json").write_text(json.dumps(coco))
        (folder / f"garden/{split}.json").write_text(json.dumps(panoptic))
    Image.fromarray(picture).save(folder / "photo.jpg")


def write_configs(folder: Path) -> None:
    """The configs, of small models and short runs; the base has all of `TINY` that belongs to the model."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        content = tiny(yaml.safe_load(path.read_text()))
        if path.name == "Base-Mask2Former.yaml":
            content["MODEL"]["RESNETS"] |= {"RES2_OUT_CHANNELS": 64, "NORM": "BN"}
            content["MODEL"]["SEM_SEG_HEAD"]["TRANSFORMER_ENC_DIM_FEEDFORWARD"] = 32
            content["INPUT"] |= {key: TINY[key] for key in ("MIN_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST")}
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as the guides suppose it, with data."""
    path = tmp_path_factory.mktemp("guides")
    for name in ("mask2former", "tools", "tests", "docs"):
        (path / name).symlink_to(ROOT / name)
    (path / "datasets").mkdir()
    for script in (ROOT / "datasets").glob("*.py"):
        (path / "datasets" / script.name).symlink_to(script)
    write_configs(path)
    write_data(path)
    run(path, "datasets/make_shapes.py", *SHAPES)
    return path


def run(folder: Path, *arguments: str) -> str:
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "DETECTRON2_DATASETS": "datasets", "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runner of guides forks")
@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(page: str, folder: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    if all(block.role == "not run" for block in blocks_of(text)):
        for block in blocks_of(text):
            check_syntax(block)
        return
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason="not installed: pip install 'mask2former[export]'")
    if page in FILES_OF:
        for block in blocks_of((ROOT / FILES_OF[page]).read_text(encoding="utf-8")):
            if block.role == "file":
                write_file(block, folder)
    output = run(folder, str(ROOT / "tests" / "helpers" / "guides.py"), str(ROOT / page))
    assert "blocks run" in output


@pytest.mark.parametrize("page", PAGES)
def test_files_that_commands_name_exist(page: str) -> None:
    for block in blocks_of((ROOT / page).read_text(encoding="utf-8")):
        if block.language == "bash":
            for words in commands_of(block.code):
                for word in words:
                    if re.fullmatch(r"(tools|configs|tests)/.*\.(py|yaml)", word):
                        assert (ROOT / word).is_file(), f"{page}, line {block.line}: {word}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_lines_fit_on_a_screen(page: str) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []


def test_what_does_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks_of((ROOT / page).read_text(encoding="utf-8")):
            assert block.role != "not run" or len(block.text) > 5
