"""Cityscapes' metrics: equality with cityscapesscripts on data with groups, void, small objects and ties."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.structures import Instances
from mask2former.data.images import DataError
from mask2former.evaluation.build import EVALUATOR_REGISTRY
from mask2former.evaluation.cityscapes_instance import (
    OBJECT_CLASSES,
    CityscapesInstanceEvaluator,
    average_precision,
    match_frame,
)
from mask2former.evaluation.cityscapes_labels import LABELS
from mask2former.evaluation.cityscapes_semantic import CityscapesSemSegEvaluator
from mask2former.evaluation.panoptic import COCOPanopticEvaluator
from mask2former.modeling.masks import PackedMasks
from tests.helpers.panoptic import CATEGORIES, disturb, random_panoptic

SIZE = (96, 128)
NAMES = list(LABELS)
IGNORED_IDS = [0, 3, 4, 9, 10, 18, 29]


class Frame(SimpleNamespace):
    """`file_name` of the image, and the content of its ground truth: `label_ids`, `instance_ids` (H, W)."""


@pytest.fixture
def make_frames(tmp_path: Path) -> Iterator[Callable[..., list[Frame]]]:
    """Returns a function that writes random frames in Cityscapes' layout and registers them as `cityscapes_test`."""

    def make(rng: np.random.Generator, count: int, **metadata: Any) -> list[Frame]:
        frames = []
        for number in range(count):
            stem = f"ulm_{number:06d}_000019"
            label_ids, instance_ids = random_truth(rng)
            folder = tmp_path / "gtFine" / "val" / "ulm"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(label_ids.astype(np.uint8)).save(folder / f"{stem}_gtFine_labelIds.png")
            Image.fromarray(instance_ids.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
            file_name = str(tmp_path / "leftImg8bit" / "val" / "ulm" / f"{stem}_leftImg8bit.png")
            frames.append(Frame(file_name=file_name, label_ids=label_ids, instance_ids=instance_ids, folder=folder))
        DatasetCatalog.register("cityscapes_test", lambda: [{"file_name": frame.file_name} for frame in frames])
        MetadataCatalog.get("cityscapes_test").set(
            **{"thing_classes": NAMES, "stuff_classes": NAMES, "gt_dir": str(tmp_path / "gtFine" / "val"), **metadata}
        )
        return frames

    yield make
    DatasetCatalog.remove("cityscapes_test")
    MetadataCatalog.remove("cityscapes_test")


def random_truth(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Stuff and void in blocks; over them objects, of which some are groups, some too small and some ignored."""
    stuff = [label.id for label in LABELS.values() if label.mean_area is None]
    blocks = rng.choice(stuff + IGNORED_IDS, size=(SIZE[0] // 16, SIZE[1] // 16))
    label_ids = np.kron(blocks, np.ones((16, 16), dtype=int))
    instance_ids = label_ids.copy()
    for number in range(int(rng.integers(2, 14))):
        height, width = rng.integers(4, 40, size=2)
        y, x = rng.integers(0, SIZE[0] - 4), rng.integers(0, SIZE[1] - 4)
        window = np.s_[y : y + height, x : x + width]
        label = int(rng.choice([24, 24, 25, 26, 26, 33, 29]))  # 29, caravan, is not evaluated
        label_ids[window] = label
        instance_ids[window] = label if rng.random() < 0.2 else 1000 * label + number
    return label_ids, instance_ids


def random_instances(rng: np.random.Generator, frame: Frame, classes: list[str]) -> Instances:
    """Shifted copies of the objects, up to three each, with equal scores among them, and noise."""
    masks, labels = [], []
    contiguous = {LABELS[name].id: index for index, name in enumerate(classes)}
    for number in np.unique(frame.instance_ids):
        label = number // 1000 if number >= 1000 else number
        for _ in range(int(rng.integers(0, 4))):
            if label in contiguous:
                shift = tuple(rng.integers(-3, 4, size=2))
                masks.append(np.roll(frame.instance_ids == number, shift, axis=(0, 1)))
                labels.append(contiguous[label] if rng.random() < 0.9 else int(rng.integers(len(classes))))
    for _ in range(4):
        mask = np.zeros(SIZE, dtype=bool)
        y, x = rng.integers(0, 90), rng.integers(0, 110)
        mask[y : y + 20, x : x + int(rng.integers(0, 30))] = True  # some are empty
        masks.append(mask)
        labels.append(int(rng.integers(len(classes))))
    return Instances(
        SIZE,
        pred_masks=torch.from_numpy(np.stack(masks)),
        pred_classes=torch.tensor(labels),
        scores=torch.from_numpy(rng.integers(1, 9, size=len(masks)) / 8).float(),
    )


def random_scores(rng: np.random.Generator, frame: Frame) -> torch.Tensor:
    contiguous = np.zeros(34, dtype=int)
    contiguous[[label.id for label in LABELS.values()]] = np.arange(len(LABELS))
    labels = np.where(rng.random(SIZE) < 0.3, rng.integers(0, 19, size=SIZE), contiguous[frame.label_ids])
    return torch.nn.functional.one_hot(torch.from_numpy(labels), 19).permute(2, 0, 1).float()


@pytest.fixture(autouse=True)
def _numpy_of_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """cityscapesscripts calls a name that numpy has dropped."""
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)


def judged_instances(frames: list[Frame], predictions: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    judge = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.setattr(judge, "writeDict2JSON", lambda content, path: None)  # which fails on numpy's integers
    monkeypatch.setattr(judge.args, "predictionPath", str(predictions))
    monkeypatch.setattr(judge.args, "gtInstancesFile", str(tmp_path / "gtInstances.json"))
    monkeypatch.setattr(judge.args, "JSONOutput", False)
    monkeypatch.setattr(judge.args, "quiet", True)
    stems = [f"{Path(frame.file_name).name.removesuffix('_leftImg8bit.png')}" for frame in frames]
    return judge.evaluateImgLists(
        [str(predictions / f"{stem}_pred.txt") for stem in stems],
        [str(f.folder / f"{stem}_gtFine_instanceIds.png") for f, stem in zip(frames, stems, strict=True)],
        judge.args,
    )["averages"]


def judged_semantic(frames: list[Frame], predictions: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    judge = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(judge.args, "JSONOutput", False)
    monkeypatch.setattr(judge.args, "quiet", True)
    stems = [f"{Path(frame.file_name).name.removesuffix('_leftImg8bit.png')}" for frame in frames]
    return judge.evaluateImgLists(
        [str(predictions / f"{stem}_pred.png") for stem in stems],
        [str(f.folder / f"{stem}_gtFine_labelIds.png") for f, stem in zip(frames, stems, strict=True)],
        judge.args,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [NAMES, OBJECT_CLASSES], ids=["panoptic", "instance"])
def test_instance_ap_equals_the_judge(
    make_frames: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, classes: list[str]
) -> None:
    rng = np.random.default_rng(seed)
    frames = make_frames(rng, 8, thing_classes=classes)
    evaluator = CityscapesInstanceEvaluator("cityscapes_test", str(tmp_path / "out"))
    for frame in frames:
        output = {"instances": random_instances(rng, frame, classes)}
        evaluator.process([{"file_name": frame.file_name}], [output])
    results = evaluator.evaluate()
    assert results is not None
    ours = results["segm"]
    theirs = judged_instances(frames, tmp_path / "out" / "instance_predictions", monkeypatch, tmp_path)
    assert 0 < ours["AP"] < 100
    assert ours["AP"] == pytest.approx(100 * theirs["allAp"], abs=1e-9)
    assert ours["AP50"] == pytest.approx(100 * theirs["allAp50%"], abs=1e-9)
    for name in OBJECT_CLASSES:
        expected = theirs["classes"][name]
        assert ours[f"AP-{name}"] == pytest.approx(100 * expected["ap"], abs=1e-9, nan_ok=True)
        assert ours[f"AP50-{name}"] == pytest.approx(100 * expected["ap50%"], abs=1e-9, nan_ok=True)
    assert math.isnan(ours["AP-truck"])  # never occurs


@pytest.mark.parametrize("seed", range(3))
def test_semantic_iou_equals_the_judge(
    make_frames: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frames = make_frames(rng, 4)
    evaluator = CityscapesSemSegEvaluator("cityscapes_test", str(tmp_path / "out"))
    for frame in frames:
        evaluator.process([{"file_name": frame.file_name}], [{"sem_seg": random_scores(rng, frame)}])
    results = evaluator.evaluate()
    assert results is not None
    ours = results["sem_seg"]
    theirs = judged_semantic(frames, tmp_path / "out" / "semantic_predictions", monkeypatch)
    for name, key in (
        ("IoU", "averageScoreClasses"),
        ("iIoU", "averageScoreInstClasses"),
        ("IoU_sup", "averageScoreCategories"),
        ("iIoU_sup", "averageScoreInstCategories"),
    ):
        assert 0 < ours[name] < 100
        assert ours[name] == pytest.approx(100 * theirs[key], abs=1e-9)
    for name in NAMES:
        assert ours[f"IoU-{name}"] == pytest.approx(100 * theirs["classScores"][name], abs=1e-9, nan_ok=True)
    for name in OBJECT_CLASSES:
        assert ours[f"iIoU-{name}"] == pytest.approx(100 * theirs["classInstScores"][name], abs=1e-9, nan_ok=True)
    assert ours["mIoU"] == ours["IoU"]
    assert "iIoU-road" not in ours


def test_average_precision_by_hand() -> None:
    # Steps at recall 1/4 (precision 1) and 2/4 (precision 2/3), integrated with half of both neighbours.
    scores, hits = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    points = [(1, 0), (1, 1 / 4), (1 / 2, 1 / 4), (2 / 3, 2 / 4)]
    recall = [0, *[r for _, r in points], 2 / 4]
    expected = sum(p * (recall[i + 2] - recall[i]) / 2 for i, (p, _) in enumerate(points))
    assert average_precision(scores, hits, 4) == pytest.approx(expected)
    assert average_precision(np.zeros(0), np.zeros(0, dtype=bool), 4) == 0


def test_nothing_found_and_nothing_there(make_frames: Callable) -> None:
    frames = make_frames(np.random.default_rng(0), 2)
    nothing = Instances(
        SIZE,
        pred_masks=torch.zeros(0, *SIZE, dtype=torch.bool),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        scores=torch.zeros(0),
    )
    evaluator = CityscapesInstanceEvaluator("cityscapes_test")
    for frame in frames:
        evaluator.process([{"file_name": frame.file_name}], [{"instances": nothing}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == 0
    evaluator.reset()
    results = evaluator.evaluate()
    assert results is not None
    assert math.isnan(results["segm"]["AP"])


@pytest.mark.parametrize(
    ("build", "key", "predict"),
    [
        (CityscapesInstanceEvaluator, "instances", lambda *args: random_instances(*args, NAMES)),
        (CityscapesSemSegEvaluator, "sem_seg", random_scores),
    ],
)
def test_ranks_add_up(
    make_frames: Callable, as_ranks: Callable[..., list[Any]], build: Callable, key: str, predict: Callable
) -> None:
    rng = np.random.default_rng(3)
    frames = make_frames(rng, 4)
    alone, *ranks = (build("cityscapes_test") for _ in range(3))
    for number, frame in enumerate(frames):
        output = {key: predict(rng, frame)}
        for evaluator in (alone, ranks[number // 2]):
            evaluator.process([{"file_name": frame.file_name}], [output])
    expected = alone.evaluate()
    results = as_ranks(ranks)
    assert results[1] is None
    for task, metrics in expected.items():
        assert results[0][task] == pytest.approx(metrics, nan_ok=True)
    with pytest.raises(ValueError, match="evaluated twice"):
        alone.process([{"file_name": frames[0].file_name}], [output])


def test_compact_outputs_give_the_same_results(make_frames: Callable) -> None:
    rng = np.random.default_rng(5)
    frames = make_frames(rng, 2)
    for build, key, predict, compact in (
        (CityscapesInstanceEvaluator, "instances", lambda *args: random_instances(*args, NAMES), packed),
        (CityscapesSemSegEvaluator, "sem_seg", random_scores, lambda scores: scores.argmax(dim=0)),
    ):
        plain, other = build("cityscapes_test"), build("cityscapes_test")
        for frame in frames:
            prediction = predict(rng, frame)
            plain.process([{"file_name": frame.file_name}], [{key: prediction}])
            other.process([{"file_name": frame.file_name}], [{key: compact(prediction)}])
        for task, metrics in plain.evaluate().items():
            assert other.evaluate()[task] == pytest.approx(metrics, nan_ok=True)


def packed(instances: Instances) -> Instances:
    fields = {**instances.get_fields(), "pred_masks": PackedMasks.pack(instances.pred_masks)}
    return Instances(instances.image_size, **fields)


def test_errors_name_the_file_and_the_fix(make_frames: Callable) -> None:
    frames = make_frames(np.random.default_rng(0), 1)
    inputs = [{"file_name": frames[0].file_name}]
    evaluator = CityscapesSemSegEvaluator("cityscapes_test")
    with pytest.raises(KeyError, match="SEMANTIC_ON"):
        evaluator.process(inputs, [{}])
    with pytest.raises(ValueError, match="scores 3 classes"):
        evaluator.process(inputs, [{"sem_seg": torch.zeros(3, *SIZE)}])
    with pytest.raises(ValueError, match=r"labelIds\.png: the prediction is \(2, 2\)"):
        evaluator.process(inputs, [{"sem_seg": torch.zeros(19, 2, 2)}])
    wrong = frames[0].file_name.replace("000000_", "000009_")
    with pytest.raises(FileNotFoundError, match="ulm_000009_000019_gtFine_labelIds"):
        evaluator.process([{"file_name": wrong}], [{"sem_seg": torch.zeros(19, *SIZE)}])
    train_ids = np.full(SIZE, 255, dtype=np.uint8)
    Image.fromarray(train_ids).save(frames[0].folder / "ulm_000000_000019_gtFine_labelIds.png")
    evaluator.reset()
    with pytest.raises(DataError, match=r"labelIds\.png: label 255, but label ids are 0\.\.33"):
        evaluator.process(inputs, [{"sem_seg": torch.zeros(19, *SIZE)}])
    with pytest.raises(ValueError, match=r"a mask is \(2, 2\)"):
        match_frame(
            label_ids=np.zeros(1),
            scores=np.zeros(1),
            masks=np.ones((1, 2, 2), bool),
            instance_ids=np.zeros((3, 2), np.int64),
        )


def test_classes_are_told_by_name(make_frames: Callable) -> None:
    make_frames(np.random.default_rng(0), 1, stuff_classes=["road", "lake"])
    with pytest.raises(ValueError, match="stuff_classes of cityscapes_test: lake are no classes of Cityscapes"):
        CityscapesSemSegEvaluator("cityscapes_test")


def test_labels_equal_the_judges() -> None:
    judge = pytest.importorskip("cityscapesscripts.helpers.labels")
    sizes = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling").args.avgClassSize
    evaluated = {label.name: label for label in judge.labels if not label.ignoreInEval}
    assert sorted(NAMES, key=lambda name: evaluated[name].trainId) == NAMES
    assert LABELS.keys() == evaluated.keys()
    for name, label in LABELS.items():
        expected = evaluated[name]
        assert label == (expected.id, expected.category, sizes[name] if expected.hasInstances else None)


def test_every_published_type_is_registered() -> None:
    published = (
        "sem_seg", "coco", "coco_panoptic_seg", "ade20k_panoptic_seg", "cityscapes_sem_seg",
        "cityscapes_instance", "cityscapes_panoptic_seg", "mapillary_vistas_panoptic_seg",
    )  # fmt: skip
    assert all(name in EVALUATOR_REGISTRY for name in published)


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_the_judge(make_dataset: Callable[..., str], tmp_path: Path, seed: int) -> None:
    judge = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    rng = np.random.default_rng(seed)
    samples = {i: random_panoptic(rng, size=(48, 64), segments=10, max_id=2**24) for i in range(4)}
    metadata = MetadataCatalog.get(make_dataset(samples))
    evaluator = COCOPanopticEvaluator(metadata.name, str(tmp_path / "out"))
    for image_id, sample in samples.items():
        ids, segments = disturb(rng, sample)
        evaluator.process([{"image_id": image_id}], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])
    results = evaluator.evaluate()
    assert results is not None
    truth, predicted = (
        {annotation["image_id"]: annotation for annotation in json.loads(path.read_bytes())["annotations"]}
        for path in (Path(metadata.panoptic_json), tmp_path / "out" / "panoptic_predictions.json")
    )
    pairs = [(truth[i], predicted[i]) for i in samples]
    categories = {category["id"]: category for category in CATEGORIES}
    folder = str(tmp_path / "out" / "panoptic_predictions")
    statistics = judge.pq_compute_single_core(0, pairs, metadata.panoptic_root, folder, categories)
    theirs = judge.average_pq(statistics, categories)
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("PQ", "SQ", "RQ"):
            ours = results["panoptic_seg"][metric + suffix]
            assert 0 < ours < 100
            assert ours == pytest.approx(100 * theirs[group][metric.lower()], abs=1e-9)
