import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mask2former import get_cfg
from mask2former.d2 import SOURCE
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.loader import build_train_loader, build_train_sampler
from mask2former.data.sampling import (
    RatioTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    classes_of,
    repeat_factors,
)
from tests.helpers.pictures import picture, save

# --- repeat factors ------------------------------------------------------------

CLASSES = [{0}, {0}, {0}, {0, 1}, {0}, {0}, {0}, {0}, {2}, set()]
"""Class 0 in eight of ten images, 1 and 2 in one each; the last image is empty."""


def test_repeat_factors_by_hand() -> None:
    factors = repeat_factors(CLASSES, 0.4)
    assert factors == pytest.approx([1, 1, 1, 2, 1, 1, 1, 1, 2, 1])  # sqrt(0.4 / 0.1)
    assert repeat_factors(CLASSES, 0.4, sqrt=False)[3] == pytest.approx(4)
    assert repeat_factors(CLASSES, 0.0) == [1.0] * 10


@pytest.mark.skipif(SOURCE != "official", reason="compares with Detectron2 itself")
def test_repeat_factors_are_those_of_detectron2() -> None:
    from detectron2.data.samplers import RepeatFactorTrainingSampler as Official

    generator = np.random.default_rng(0)
    classes = [set(generator.integers(0, 30, generator.integers(0, 4)).tolist()) for _ in range(200)]
    records = [{"annotations": [{"category_id": c} for c in sorted(found)]} for found in classes]
    expected = Official.repeat_factors_from_category_frequency(records, 0.3)
    np.testing.assert_allclose(repeat_factors(classes, 0.3), expected.numpy(), rtol=1e-6)


def test_images_come_as_often_as_their_factor() -> None:
    sampler = RepeatFactorTrainingSampler([1.0, 2.0, 2.5], seed=5)
    epochs = [Counter(order) for order in itertools.islice(sampler.epochs(), 400)]
    assert all((epoch[0], epoch[1]) == (1, 2) for epoch in epochs)
    assert {epoch[2] for epoch in epochs} == {2, 3}
    assert np.mean([epoch[2] for epoch in epochs]) == pytest.approx(2.5, abs=0.1)
    pairs = list(itertools.islice(sampler, 500))
    assert [position for position, _ in pairs] == list(range(500))
    shares = [list(itertools.islice(RepeatFactorTrainingSampler([1.0, 2.0, 2.5], seed=5, rank=r, world_size=2), 250))
              for r in (0, 1)]  # fmt: skip
    assert [pair for both in zip(*shares, strict=True) for pair in both] == pairs


def test_classes_of_each_kind(tmp_path: Path) -> None:
    annotations = [{"annotations": [{"category_id": 3}, {"category_id": 3, "iscrowd": 1}, {"category_id": 1}]}]
    assert classes_of(annotations) == [{1, 3}]
    segments = [{"pan_seg_file_name": "a.png", "segments_info": [{"category_id": 2}]}]
    assert classes_of(segments) == [{2}]
    path = str(save(tmp_path / "a.png", np.array([[0, 7], [255, 7]], np.uint8)))
    assert classes_of([{"sem_seg_file_name": path, "sem_seg_values": {0: 1, 7: 0, 255: 255}}]) == [{0, 1}]
    with pytest.raises(ValueError, match="repeat factors need annotations"):
        classes_of([{"file_name": "a.jpg"}])


# --- ratios --------------------------------------------------------------------


def ratio_sampler(sizes: tuple[int, ...], ratios: tuple[float, ...], **place: int) -> RatioTrainingSampler:
    parts = [TrainingSampler(size, seed=1, number=n) for n, size in enumerate(sizes)]
    return RatioTrainingSampler(parts, ratios, seed=1, **place)


def test_each_data_set_gives_its_share() -> None:
    pairs = list(itertools.islice(ratio_sampler((90, 10), (1, 2)), 6000))
    assert [position for position, _ in pairs] == list(range(6000))
    from_second = [index >= 90 for _, index in pairs]
    assert sum(from_second) == 4000
    assert all(abs(sum(from_second[:n]) - n * 2 / 3) < 25 for n in range(0, 6000, 100))
    counts = Counter(index for _, index in pairs)
    assert {counts[index] for index in range(90, 100)} == {400}  # its own epochs: each image equally often
    assert {counts[index] for index in range(90)} <= {22, 23}


def test_shares_among_processes_and_seeds() -> None:
    whole = list(itertools.islice(ratio_sampler((5, 3), (1, 1)), 60))
    halves = [list(itertools.islice(ratio_sampler((5, 3), (1, 1), rank=r, world_size=2), 30)) for r in (0, 1)]
    assert [pair for both in zip(*halves, strict=True) for pair in both] == whole
    other = RatioTrainingSampler([TrainingSampler(5, seed=2), TrainingSampler(3, seed=2, number=1)], (1, 1), seed=2)
    assert list(itertools.islice(other, 60)) != whole


@pytest.mark.parametrize("ratios", [(1,), (1, 0), (1, -1), (1, float("nan"))])
def test_ratios_that_do_not_fit(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.RATIOS .* positive number for each of the 2 data sets"):
        ratio_sampler((5, 3), ratios)


# --- by config -----------------------------------------------------------------


@pytest.fixture
def two_sets(tmp_path: Path) -> Iterator[CfgNode]:
    """Two registered sets of label maps, of six images and of two."""
    names = []
    for name, count in (("sampling_a", 6), ("sampling_b", 2)):
        records = []
        for number in range(count):
            image = str(picture(tmp_path / name / f"{number}.jpg", (32, 32)))
            rare = int(name == "sampling_a" and number == 0)
            labels = str(save(tmp_path / name / f"{number}.png", np.full((32, 32), rare, np.uint8)))
            records.append({"file_name": image, "sem_seg_file_name": labels, "image_id": f"{name}{number}"})
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255, evaluator_type="sem_seg")
        names.append(name)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = tuple(names)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.FORMAT = (32,), "RGB"
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED, cfg.MODEL.DEVICE = 0, 4, 0, "cpu"
    yield cfg
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def ids(cfg: CfgNode, start: int, count: int) -> list[str]:
    loader = build_train_loader(cfg, start_iteration=start)
    return [item["image_id"] for batch in itertools.islice(loader, count) for item in batch]


def test_ratios_of_a_config(two_sets: CfgNode) -> None:
    assert Counter(name[:10] for name in ids(two_sets, 0, 10)) == {"sampling_a": 30, "sampling_b": 10}
    two_sets.DATASETS.RATIOS = (1, 3)
    taken = ids(two_sets, 0, 10)
    assert Counter(name[:10] for name in taken) == {"sampling_a": 10, "sampling_b": 30}
    assert ids(two_sets, 6, 4) == taken[24:]  # a resumed run goes on in the same order


def test_repeat_factors_of_a_config(two_sets: CfgNode) -> None:
    two_sets.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    two_sets.DATALOADER.REPEAT_THRESHOLD = 0.5  # the rare class is in one of eight images: factor 2
    counts = Counter(ids(two_sets, 0, 9))
    assert counts["sampling_a0"] == 8
    assert {count for name, count in counts.items() if name != "sampling_a0"} == {4}


def test_unknown_sampler(two_sets: CfgNode) -> None:
    two_sets.DATALOADER.SAMPLER_TRAIN = "RandomSubset"
    with pytest.raises(ValueError, match="'RandomSubset'; there are TrainingSampler and RepeatFactorTrainingSampler"):
        build_train_sampler(two_sets, [[{}]], seed=0)
