"""Derived settings, by values."""

from typing import Any

import pytest

from mask2former import model_zoo
from mask2former.data.summary import INSTANCE, PANOPTIC, SEMANTIC, Counts, DataSummary
from mask2former.engine import derive
from mask2former.engine.derive import Conditions, Recipe

ZOO = {
    INSTANCE: "coco/instance-segmentation/maskformer2_R50_bs16_50ep",
    PANOPTIC: "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep",
    SEMANTIC: "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k",
}


def summary(kind: str = INSTANCE, **changes: Any) -> DataSummary:
    values: dict[str, Any] = {
        "kind": kind,
        "classes": ("cat", "dog", "sky"),
        "things": (True, True, False),
        "images": 100,
        "empty": 0,
        "counts": Counts(most=(20, "photos/full.png")),
        "read": 100,
        "pixels": 1,
        "smallest": (400, 600),
        "median": (400, 600),
        "largest": (800, 1200),
        "sides": (400, 1200),
        "areas": (100.0, 400.0, 900.0),
        "relative": (0.1, 0.2, 0.4),
    }
    return DataSummary(**values | changes)


def run(data: DataSummary, rules: Any, *, given: dict[str, Any] | None = None, **conditions: Any) -> dict[str, Any]:
    cfg = model_zoo.get_config(ZOO[data.kind])
    values: dict[str, Any] = {"recipe": Recipe.from_config(cfg), "on_gpu": True, "pretrained": True, "processors": 8}
    for key, value in (given or {}).items():
        derive.set_key(cfg, key, value)
    settings = derive.derive(cfg, data, Conditions(**values | conditions), rules, given or ())
    for key, value, _ in settings:
        taken = derive.get_key(cfg, key)
        assert (list(taken) if isinstance(value, list) else taken) == value
    assert all(reason for _, _, reason in settings)
    return {key.rpartition(".")[2]: value for key, value, _ in settings}


@pytest.mark.parametrize(
    ("kind", "mapper", "on"),
    [
        (INSTANCE, "coco_instance_lsj", (False, True, False)),
        (PANOPTIC, "coco_panoptic_lsj", (True, True, True)),
        (SEMANTIC, "mask_former_semantic", (True, False, False)),
    ],
)
def test_task(kind: str, mapper: str, on: tuple[bool, ...]) -> None:
    found = run(summary(kind), [derive.task_settings])
    assert (found["DATASET_MAPPER_NAME"], found["NUM_CLASSES"]) == (mapper, 3)
    assert tuple(found[f"{task}_ON"] for task in ("SEMANTIC", "INSTANCE", "PANOPTIC")) == on
    assert "FILTER_EMPTY_ANNOTATIONS" not in found


def test_empty_images_are_kept() -> None:
    assert run(summary(empty=1), [derive.task_settings])["FILTER_EMPTY_ANNOTATIONS"] is False
    assert "FILTER_EMPTY_ANNOTATIONS" not in run(summary(SEMANTIC, empty=1), [derive.task_settings])


@pytest.mark.parametrize(
    ("most", "pretrained", "queries", "detections"),
    [
        (20, True, 100, None),
        (100, True, 100, None),  # the published queries are kept where they suffice
        (100, False, 150, None),
        (83, False, 100, None),
        (84, False, 150, None),
        (101, True, 150, 150),
        (369, True, 450, 450),
    ],
)
def test_queries(most: int, pretrained: bool, queries: int, detections: int | None) -> None:
    data = summary(counts=Counts(most=(most, "photos/full.png")))
    found = run(data, [derive.query_settings], pretrained=pretrained)
    assert found["NUM_OBJECT_QUERIES"] == queries
    assert found.get("DETECTIONS_PER_IMAGE") == detections


def test_given_queries_stay_and_count() -> None:
    data = summary(counts=Counts(most=(150, "a.png")))
    found = run(data, [derive.query_settings], given={"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 120})
    assert found == {"DETECTIONS_PER_IMAGE": 120}


def test_label_maps_have_no_detections() -> None:
    found = run(summary(SEMANTIC, counts=Counts(most=(150, "a.png"))), [derive.query_settings])
    assert found == {"NUM_OBJECT_QUERIES": 200}


def test_crops_are_of_the_images_own_size() -> None:
    found = run(summary(), [derive.size_settings])
    assert found == {
        "IMAGE_SIZE": 608,  # 600, to a multiple of 32
        "MIN_SCALE": pytest.approx(0.5 * 600 / 608, abs=1e-3),
        "MAX_SCALE": pytest.approx(1.5 * 600 / 608, abs=1e-3),
        "MIN_SIZE_TEST": 608,
        "MAX_SIZE_TEST": 608,
    }


def test_small_objects_are_enlarged_and_large_images_cropped() -> None:
    found = run(summary(relative=(0.02, 0.05, 0.1)), [derive.size_settings])  # 12 of 600 pixels
    assert found["IMAGE_SIZE"] == 800  # 16 pixels
    found = run(summary(relative=(0.002, 0.005, 0.01)), [derive.size_settings])
    assert (found["IMAGE_SIZE"], found["MAX_SIZE_TEST"]) == (1024, 1216)  # twice as large as the image, at most
    assert found["MIN_SCALE"] == pytest.approx(0.5 * 1200 / 1024, abs=1e-3)
    found = run(summary(median=(3000, 4000), relative=(0.002, 0.005, 0.01)), [derive.size_settings])
    assert (found["IMAGE_SIZE"], found["MAX_SIZE_TEST"], found["MAX_SCALE"]) == (1024, 2048, 3.0)


def test_scales_follow_how_much_objects_vary() -> None:
    found = run(summary(relative=(0.04, 0.2, 0.4)), [derive.size_settings])
    assert (found["MIN_SCALE"], found["MAX_SCALE"]) == (
        pytest.approx(0.1 * 600 / 608, abs=1e-3),
        pytest.approx(2.0 * 600 / 608, abs=1e-3),
    )


def test_given_crop_sets_the_scales() -> None:
    found = run(summary(), [derive.size_settings], given={"INPUT.IMAGE_SIZE": 300})
    assert "IMAGE_SIZE" not in found
    assert (found["MIN_SCALE"], found["MAX_SCALE"], found["MAX_SIZE_TEST"]) == (1.0, 3.0, 608)


@pytest.mark.parametrize(("pretrained", "crop", "test", "tile"), [(True, 512, 608, 0), (False, 128, 256, 128)])
def test_a_cpu_has_smaller_crops(pretrained: bool, crop: int, test: int, tile: int) -> None:
    """From random weights the test sees no more at once than training."""
    found = run(summary(), [derive.size_settings], on_gpu=False, pretrained=pretrained)
    assert (found["IMAGE_SIZE"], found["MAX_SIZE_TEST"], found.get("TILE_SIZE", 0)) == (crop, test, tile)


def test_queries_of_tiles() -> None:
    data = summary(counts=Counts(most=(600, "a.png")))  # a quarter of them in a tile
    found = run(data, [derive.size_settings, derive.query_settings], on_gpu=False, pretrained=False)
    assert (found["NUM_OBJECT_QUERIES"], found["DETECTIONS_PER_IMAGE"]) == (200, 200)
    assert found["TILE_SIZE"] * 2 == found["MAX_SIZE_TEST"]


def test_semantic_sizes() -> None:
    found = run(summary(SEMANTIC, median=(1024, 2048)), [derive.size_settings])  # as published for Cityscapes
    published = model_zoo.get_config("cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k").INPUT
    assert found["MIN_SIZE_TRAIN"] == list(published.MIN_SIZE_TRAIN)
    assert (found["MIN_SIZE_TEST"], found["SIZE"]) == (1024, [512, 1024])
    found = run(summary(SEMANTIC, median=(480, 360)), [derive.size_settings])
    assert (found["MIN_SIZE_TEST"], found["SIZE"]) == (360, [512, 384])
    assert (found["MIN_SIZE_TRAIN"][0], found["MIN_SIZE_TRAIN"][-1]) == (180, 720)


def test_semantic_sizes_on_a_cpu() -> None:
    data = summary(SEMANTIC, median=(720, 960))
    found = run(data, [derive.size_settings], on_gpu=False, pretrained=False)
    assert (found["MIN_SIZE_TEST"], found["SIZE"]) == (192, [128, 192])
    found = run(data, [derive.size_settings], on_gpu=False)
    assert (found["MIN_SIZE_TEST"], found["SIZE"]) == (512, [384, 512])


def test_length_and_rate() -> None:
    rules = [derive.rate_settings, derive.length_settings]
    found = run(summary(images=1000), rules, given={"SOLVER.IMS_PER_BATCH": 4}, epochs=12)
    assert found == {
        "BASE_LR": 2.5e-05,
        "MAX_ITER": 3000,
        "STEPS": [2667, 2889],  # at 88.9 and 96.3 %
        "WARMUP_ITERS": 150,
        "WARMUP_FACTOR": 0.01,
    }


def test_length_without_epochs() -> None:
    def length(images: int) -> int:
        return run(summary(images=images), [derive.length_settings])["MAX_ITER"]

    assert length(118287) == 50 * 118287 // 16 + 1
    assert length(100) == 1500
    assert length(3) == 1500


def test_given_length_sets_steps_and_warm_up() -> None:
    found = run(summary(), [derive.length_settings], given={"SOLVER.MAX_ITER": 900}, epochs=12)
    assert found == {"STEPS": [800, 867], "WARMUP_ITERS": 45, "WARMUP_FACTOR": 0.01}
    assert run(summary(), [derive.length_settings], given={"SOLVER.MAX_ITER": 1})["STEPS"] == [1]


def test_polynomial_schedules_have_no_steps() -> None:
    assert "STEPS" not in run(summary(SEMANTIC), [derive.length_settings])


def evaluations(validation: DataSummary | None, detections: int = 100) -> dict[str, Any]:
    cfg = model_zoo.get_config(ZOO[INSTANCE])
    cfg.SOLVER.MAX_ITER = 1000  # 16000 images
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 600, 600, 600  # tested at 400x600
    cfg.TEST.DETECTIONS_PER_IMAGE = detections
    settings = derive.evaluation_settings(cfg, summary(), validation)
    return {key.rpartition(".")[2]: value for key, value, _ in settings}


@pytest.mark.parametrize(("validated", "period"), [(20, 100), (2000, 250), (10**6, 1000)])
def test_evaluation_takes_a_share_of_the_time(validated: int, period: int) -> None:
    # 2000 images of 2/3 of the pixels, half of the work for each: 667 of a fifth of 16000
    assert evaluations(summary(images=validated)) == {"EVAL_PERIOD": period, "CHECKPOINT_PERIOD": period}


def test_many_detections_take_longer() -> None:
    assert evaluations(summary(images=1000))["EVAL_PERIOD"] == 112  # nine
    assert evaluations(summary(images=1000), detections=400)["EVAL_PERIOD"] == 500


def test_nothing_to_validate_on() -> None:
    assert evaluations(None) == {"EVAL_PERIOD": 0, "CHECKPOINT_PERIOD": 100}


def test_largest_crop() -> None:
    cfg = model_zoo.get_config(ZOO[SEMANTIC])
    assert derive.crop_size(cfg, summary(SEMANTIC)) == (512, 512)
    assert derive.crop_size(cfg, summary()) == (1024, 1024)
    cfg.INPUT.CROP.ENABLED = False
    assert derive.crop_size(cfg, summary(SEMANTIC)) == (800, 1200)


@pytest.mark.parametrize(
    ("on_gpu", "processors", "workers"), [(True, 8, None), (True, 2, 2), (False, 2, 1), (False, 1, 0)]
)
def test_workers(on_gpu: bool, processors: int, workers: int | None) -> None:
    found = run(summary(), [derive.worker_settings], on_gpu=on_gpu, processors=processors)
    assert found.get("NUM_WORKERS") == workers


def test_batch_limit() -> None:
    cfg = model_zoo.get_config(ZOO[INSTANCE])
    assert derive.batch_limit(cfg, summary(), 8) == 16
    assert derive.batch_limit(cfg, summary(images=5), 1) == 5
    assert derive.batch_limit(cfg, summary(images=5), 2) == 4
    assert derive.batch_limit(cfg, summary(images=1), 2) == 2
