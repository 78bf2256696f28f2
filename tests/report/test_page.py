"""The page about a run: complete, self-contained, escaped, small, and there whatever is missing."""

import base64
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mask2former
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.rle import encode_mask, to_json
from mask2former.engine.setup import write_config
from mask2former.evaluation.confusion import MISSED
from mask2former.evaluation.curves import OperatingPoint
from mask2former.evaluation.details import Details, ImageScore
from mask2former.evaluation.pictures import PictureEvaluator
from mask2former.report import write_report
from mask2former.report.extremes import best_and_worst
from tests.evaluation.test_pictures import output_of, truth_of

EVIL = "<script>alert(1)</script>"


class Parsed(HTMLParser):
    """Tags that are open, attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Parsed:
    text = path.read_text(encoding="utf-8")
    page = Parsed(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert not re.search(r"url\(|@import", text)
    return page


def details(classes: list[str], dataset: str = "any", count: int = 0, **changed: Any) -> Details:
    """Details of a set in which every second object of every class is found."""
    number = len(classes)
    table = np.zeros((number + 2, number + 1), dtype=int)
    table[range(number), range(number)] = 5
    table[:number, MISSED] = 5
    given: dict[str, Any] = {
        "task": "segm",
        "dataset": dataset,
        "unit": "objects",
        "score_name": "F1",
        "classes": classes,
        "columns": {"objects": [10.0] * number, "AP": [50.0] * number},
        "confusion": table.tolist(),
        "images": [
            ImageScore(image=i, score=i / 10, errors=[(0, MISSED, 9 - i)] if i < 9 else []) for i in range(count)
        ],
        "precision": [np.linspace(1, 0, 101).tolist()] * number,
        "points": [OperatingPoint(threshold=0.25, precision=0.5, recall=0.5)] * number,
    }
    return Details(**{**given, **changed})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a config and metrics of three iterations, the last line cut off."""
    cfg = mask2former.get_cfg()
    cfg.SOLVER.BASE_LR = 0.0123
    cfg.MODEL.WEIGHTS = EVIL
    write_config(cfg, tmp_path / "config.yaml")
    lines = [
        {"iteration": i, "total_loss": 3.0 - i, "lr": 0.1, "segm/AP": 40.0 - i, f"segm/AP-{EVIL}": 1.0} for i in (0, 1)
    ]
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"iteration": 2, "tot')
    return tmp_path


def test_metrics_curves_settings_and_tables(folder: Path) -> None:
    details(["cat", EVIL]).write(folder / "inference" / "any")
    page = read(write_report(folder))
    assert "segm/AP39.040.00" in page.text  # last, best, at iteration 0
    assert "SOLVER.BASE_LR0.01230.001" in page.text
    assert "SOLVER.MAX_ITER" not in page.text  # as by default
    assert "cat1050" in page.text
    assert "F1 0.50 at score 0.250" in page.text
    assert "5x cat missed" in page.text
    assert page.text.count(EVIL) >= 3  # settings, class table, curve: as text
    assert "2 iterations" in page.text


def test_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    write_config(mask2former.get_cfg(), tmp_path / "config.yaml")
    page = read(write_report(tmp_path))
    assert "no iteration yet" in page.text
    assert "Nothing was scored." in page.text
    with pytest.raises(FileNotFoundError, match=r"config\.yaml does not exist: a report is about the OUTPUT_DIR"):
        write_report(tmp_path / "nothing")


def test_nothing_there_and_nothing_found(folder: Path) -> None:
    """No classes; classes without objects; no point of highest F1; one image without a score."""
    empty = details([])
    nothing = details(
        ["cat"],
        task="panoptic_seg",
        columns={"PQ": [None]},
        confusion=np.zeros((3, 2), dtype=int).tolist(),
        images=[ImageScore(image=1, score=None, errors=[])],
        precision=[[]],
        points=[None],
    )
    empty.write(folder / "inference" / "any")
    nothing.write(folder / "inference" / "any")
    page = read(write_report(folder))
    assert "cat-" in page.text
    assert "Confusion" not in page.text
    assert "Best images" not in page.text
    details(["cat"], count=1, points=[None]).write(folder / "inference" / "any")
    page = read(write_report(folder))
    assert "nothing found" in page.text
    assert "F1 0.0: 9x cat missed" in page.text


def test_150_classes_with_all_confusions(folder: Path) -> None:
    number = 150
    table = np.full((number + 2, number + 1), 12345)
    one = details([f"a class with a rather long name {i}" for i in range(number)], count=4000, confusion=table.tolist())
    one.write(folder / "inference" / "any")
    path = write_report(folder)
    read(path)
    assert path.stat().st_size < 5e6


def test_best_and_worst() -> None:
    best, worst = best_and_worst(details(["cat"], count=10), 3)
    assert [image.image for image in best] == [9, 8, 7]
    assert [image.image for image in worst] == [0, 1, 2]
    best, worst = best_and_worst(details(["cat"], count=3), 5)
    assert ([image.image for image in best], [image.image for image in worst]) == ([2, 1], [0])


@pytest.fixture(params=["panoptic", "instance", "semantic"])
def evaluated(request: pytest.FixtureRequest, folder: Path) -> Iterator[Details]:
    """Predictions of two images as the evaluators write them, the data set, and pictures."""
    kind = request.param
    out = folder / "inference" / "tiny"
    records = []
    for number in range(2):
        Image.new("RGB", (64, 48), (120, 120, 120)).save(folder / f"{number}.jpg")
        record = {"file_name": str(folder / f"{number}.jpg"), "image_id": number, "height": 48, "width": 64}
        records.append({**record, **truth_of(kind, folder, number)})
    DatasetCatalog.register("tiny", lambda: records)
    ids = {11: 0, 12: 1, 13: 2}
    MetadataCatalog.get("tiny").set(
        thing_classes=["a", "b", "c"], stuff_classes=["a", "b", "c"], ignore_label=255,
        thing_dataset_id_to_contiguous_id=ids, stuff_dataset_id_to_contiguous_id=ids,
    )  # fmt: skip
    evaluator = PictureEvaluator("tiny", str(out), count=1)
    evaluator.process(records, [output_of(kind)] * 2)
    evaluator.evaluate()
    write_predictions(kind, out)
    task = {"panoptic": "panoptic_seg", "instance": "segm", "semantic": "sem_seg"}[kind]
    made = details(["a", "b", "c"], "tiny", count=2, task=task)
    made.write(out)
    yield made
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")


def write_predictions(kind: str, out: Path) -> None:
    """Of both images class b in the square of `output_of`, and an instance of class c below its threshold."""
    output = output_of(kind)
    out.mkdir(parents=True, exist_ok=True)
    if kind == "semantic":
        (out / "semantic_predictions").mkdir()
        for number in range(2):
            labels = output["sem_seg"].argmax(0).numpy().astype(np.uint8)
            Image.fromarray(labels).save(out / "semantic_predictions" / f"{number}.png")
    elif kind == "panoptic":
        (out / "panoptic_predictions").mkdir()
        ids = np.zeros((48, 64, 3), dtype=np.uint8)
        ids[..., 0] = output["panoptic_seg"][0]
        annotations = []
        for number in range(2):
            Image.fromarray(ids).save(out / "panoptic_predictions" / f"{number}.png")
            info = [{"id": 1, "category_id": 12}]
            annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": info})
        (out / "panoptic_predictions.json").write_text(json.dumps({"annotations": annotations}))
    else:
        masks = output["instances"].pred_masks
        rles = [to_json(encode_mask(np.asarray(masks[i]))) for i in range(2)]
        written = [
            {"image_id": n, "category_id": c, "score": s, "segmentation": rle}
            for n in range(2)
            for c, s, rle in ((12, 0.3, rles[0]), (13, 0.2, rles[1]))
        ]
        (out / "coco_instances_results.json").write_text(json.dumps(written))


def pictures(page: Parsed) -> list[np.ndarray]:
    files = [io.BytesIO(base64.b64decode(link.partition(",")[2])) for link in page.links if link.startswith("data:")]
    return [np.asarray(Image.open(file)) for file in files]


def test_pictures_of_all_tasks(folder: Path, evaluated: Details) -> None:
    """Best, worst, and the one of the evaluation; predictions from files look like those of the model."""
    page = read(write_report(folder, images=1))
    best, worst, same = pictures(page)
    assert best.shape == worst.shape == same.shape
    assert np.abs(worst.astype(int) - same).mean() < (
        3 if evaluated.task != "segm" else 6
    )  # "b 30%" there, "b 90%" here
    assert "F1 10.0: 8x a missed" in page.text
    assert "1.jpg" in page.text


def test_without_the_data_set_there_are_names_and_reasons(folder: Path, evaluated: Details, tmp_path: Path) -> None:
    records = DatasetCatalog.get("tiny")
    DatasetCatalog.remove("tiny")
    page = read(write_report(folder))
    DatasetCatalog.register("tiny", lambda: records)
    assert len(pictures(page)) == 1
    assert "F1 0.0: 9x a missed" in page.text


def test_without_the_files_of_the_data_set(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def gone() -> list[dict[str, Any]]:
        raise FileNotFoundError("no file gone.json")

    DatasetCatalog.register("gone", gone)
    details(["cat"], "gone", count=3).write(folder / "inference" / "gone")
    page = read(write_report(folder))
    DatasetCatalog.remove("gone")
    assert "F1 0.0: 9x cat missed" in page.text
    assert "of gone cannot be drawn: no file gone.json" in caplog.text


def test_without_predictions_there_are_no_pictures_of_them(folder: Path, evaluated: Details) -> None:
    for file in (folder / "inference" / "tiny").glob("*_predictions"):
        for png in file.glob("*.png"):
            png.unlink()
    for file in (folder / "inference" / "tiny").glob("coco_instances_results.json"):
        file.write_text("[]")
    assert "F1 0.0: 9x a missed" in read(write_report(folder)).text


def test_the_last_iteration_counts(folder: Path) -> None:
    for name in ("0000099", "0001000", "."):
        path = folder / "inference" / "any" / "pictures" / name
        path.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (int(name.strip(".") or 1), 2)).save(path / "00_a.jpg")
    (picture,) = pictures(read(write_report(folder)))
    assert picture.shape == (2, 1000, 3)
