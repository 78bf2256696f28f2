import itertools
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.images import DataError
from mask2former.data.loader import (
    InferenceSampler,
    PackedList,
    TrainingBatchSampler,
    TrainingDataset,
    TrainingSampler,
    build_test_loader,
    build_train_loader,
    load_datasets,
)


def take(loader, count: int) -> list:
    """The first `count` batches; the iterator's workers end with it."""
    return list(itertools.islice(iter(loader), count))


def assert_same(left: list, right: list) -> None:
    assert len(left) == len(right)
    for batch, other in zip(left, right, strict=True):
        assert [item["image_id"] for item in batch] == [item["image_id"] for item in other]
        for item, twin in zip(batch, other, strict=True):
            assert torch.equal(item["image"], twin["image"])
            assert torch.equal(item["instances"].gt_masks.tensor, twin["instances"].gt_masks.tensor)


# --- samplers -----------------------------------------------------------------


def test_every_epoch_holds_each_index_once() -> None:
    pairs = list(itertools.islice(TrainingSampler(7, seed=0), 70))
    assert [position for position, _ in pairs] == list(range(70))
    epochs = [[index for _, index in pairs[start : start + 7]] for start in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_order_depends_on_the_seed_alone() -> None:
    first = list(itertools.islice(TrainingSampler(50, seed=1), 100))
    assert first == list(itertools.islice(TrainingSampler(50, seed=1), 100))
    assert first != list(itertools.islice(TrainingSampler(50, seed=2), 100))


def test_ranks_share_the_stream() -> None:
    whole = list(itertools.islice(TrainingSampler(5, seed=1), 30))
    shares = [list(itertools.islice(TrainingSampler(5, seed=1, rank=rank, world_size=3), 10)) for rank in range(3)]
    assert [pair for group in zip(*shares, strict=True) for pair in group] == whole
    (alone,) = itertools.islice(TrainingSampler(2, seed=1, rank=6, world_size=8), 1)
    assert alone[0] == 6


def test_batches_hold_wide_images_or_others() -> None:
    is_wide = [True, False, True, True, False, True, True]
    sampler = TrainingSampler(7, seed=1)
    batches = list(itertools.islice(TrainingBatchSampler(sampler, 3, is_wide=is_wide), 20))
    assert {sum(is_wide[index] for _, index in batch) for batch in batches} == {0, 3}
    for wide in (True, False):  # no position is lost, and each group keeps its order
        expected = [pair for pair in itertools.islice(sampler, 120) if is_wide[pair[1]] is wide]
        taken = [pair for batch in batches for pair in batch if is_wide[pair[1]] is wide]
        assert taken == expected[: len(taken)]
        assert len(taken) > 10
    for start in (1, 7):
        rest = TrainingBatchSampler(sampler, 3, is_wide=is_wide, start=start)
        assert list(itertools.islice(rest, 5)) == batches[start : start + 5]


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    pairs = itertools.islice(TrainingSampler(3, seed=1, shuffle=False), 5)
    assert [index for _, index in pairs] == [0, 1, 2, 0, 1]


def test_sampler_of_nothing() -> None:
    with pytest.raises(ValueError, match="needs images"):
        TrainingSampler(0, seed=0)


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_inference_covers_each_index_once(size: int, world_size: int) -> None:
    samplers = [InferenceSampler(size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [index for sampler in samplers for index in sampler] == list(range(size))
    lengths = [len(sampler) for sampler in samplers]
    assert max(lengths) - min(lengths) <= 1


# --- determinism --------------------------------------------------------------


def test_same_batches_with_any_number_of_workers(cfg: CfgNode, panoptic_set) -> None:
    expected = take(build_train_loader(cfg), 5)
    for workers in (1, 2):
        cfg.DATALOADER.NUM_WORKERS = workers
        assert_same(take(build_train_loader(cfg), 5), expected)
    cfg.SEED = 4
    assert not torch.equal(take(build_train_loader(cfg), 1)[0][0]["image"], expected[0][0]["image"])


def test_seed_0_is_a_seed_and_a_negative_one_is_drawn(
    cfg: CfgNode, panoptic_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(comm, "shared_random_seed", lambda: drawn.append(7) or 7)
    expected = [take(build_train_loader(change(cfg, seed)), 2) for seed in (0, 7)]
    assert drawn == []
    assert_same(take(build_train_loader(change(cfg, -1)), 2), expected[1])
    assert drawn == [7]
    assert not torch.equal(expected[0][0][0]["image"], expected[1][0][0]["image"])


def change(cfg: CfgNode, seed: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.SEED = seed
    return cfg


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_stream_equals_the_uninterrupted(cfg: CfgNode, panoptic_set, workers: int) -> None:
    expected = take(build_train_loader(cfg), 6)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert_same(take(build_train_loader(cfg, start_iteration=4), 2), expected[4:])


def test_processes_together_train_on_the_batch_of_one(
    cfg: CfgNode, panoptic_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = take(build_train_loader(cfg), 2)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(build_train_loader(cfg), 2))
    for iteration in range(2):
        assert_same(
            [shares[0][iteration], shares[1][iteration]], [expected[iteration][0::2], expected[iteration][1::2]]
        )


def test_augmentation_differs_between_epochs(cfg: CfgNode, panoptic_set) -> None:
    cfg.SOLVER.IMS_PER_BATCH = 1
    dataset = DatasetCatalog.get(panoptic_set.name)[:1]
    images = [batch[0]["image"] for batch in take(build_train_loader(cfg, dataset=dataset), 3)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_global_random_states_are_left_alone(cfg: CfgNode, panoptic_set) -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    take(build_train_loader(cfg), 2)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


# --- building -----------------------------------------------------------------


def test_batch_that_does_not_divide(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 4.*multiple of the 3 processes"):
        build_train_loader(cfg)


def test_unknown_sampler(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    with pytest.raises(ValueError, match="'RandomSubsetTrainingSampler'; there are TrainingSampler and Repeat"):
        build_train_loader(cfg)


def test_no_images(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match="holds no images"):
        build_train_loader(cfg, dataset=[])


@pytest.mark.parametrize("grouping", [True, False])
def test_grouping_is_by_the_sizes_that_data_sets_say(cfg: CfgNode, grouping: bool) -> None:
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    dataset = [{"width": 20 if number % 2 else 10, "height": 10} for number in range(40)]
    batches = take(build_train_loader(cfg, dataset=dataset, mapper=lambda record: record), 15)
    mixed = [batch for batch in batches if len({item["width"] for item in batch}) > 1]
    assert (not mixed) is grouping
    del dataset[0]["height"]
    batches = take(build_train_loader(cfg, dataset=dataset, mapper=lambda record: record), 15)
    assert any(len({item["width"] for item in batch}) > 1 for batch in batches)


def test_own_dataset_and_mapper(cfg: CfgNode) -> None:
    loader = build_train_loader(cfg, dataset=[{"n": 0}, {"n": 1}], mapper=lambda record: record)
    assert sorted(item["n"] for item in take(loader, 1)[0]) == [0, 0, 1, 1]


def test_test_loader_goes_through_the_set_once(cfg: CfgNode, panoptic_set) -> None:
    for workers in (0, 2):
        cfg.DATALOADER.NUM_WORKERS = workers
        batches = list(build_test_loader(cfg, panoptic_set.name))
        assert [len(batch) for batch in batches] == [1] * len(panoptic_set.images)
        assert [batch[0]["image_id"] for batch in batches] == list(range(1, len(batches) + 1))
        assert "instances" not in batches[0][0]


def test_images_without_objects_are_left_out_on_demand(panoptic_set, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def change(content: dict) -> None:
        content["annotations"][0]["segments_info"] = []
        for segment in content["annotations"][1]["segments_info"]:
            segment["iscrowd"] = 1

    panoptic_set.edit(change)
    total = len(panoptic_set.images)
    assert len(load_datasets([panoptic_set.name], filter_empty=False)) == total
    assert len(load_datasets([panoptic_set.name], filter_empty=True)) == total - 2
    assert f"Left out 2 of {total} images" in caplog.text


def test_data_sets_must_share_their_classes(panoptic_set) -> None:
    DatasetCatalog.register("test_other", list)
    MetadataCatalog.get("test_other").thing_classes = ["cat"]
    try:
        with pytest.raises(ValueError, match="test_shapes, test_other differ in thing_classes"):
            load_datasets([panoptic_set.name, "test_other"], filter_empty=False)
    finally:
        DatasetCatalog.remove("test_other")
        MetadataCatalog.remove("test_other")
    assert len(load_datasets([panoptic_set.name] * 2, filter_empty=False)) == 2 * len(panoptic_set.images)


# --- unreadable images --------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("folder", ["images", "pngs"])
def test_one_corrupt_file_is_skipped_once_said(
    cfg: CfgNode, panoptic_set, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    path = getattr(panoptic_set, folder)[2]
    truncate(path)
    batches = take(build_train_loader(cfg), 12)
    assert all(len(batch) == 4 for batch in batches)
    assert 3 not in {item["image_id"] for batch in batches for item in batch}
    assert caplog.text.count(path.name) == 1
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(take(build_train_loader(cfg), 12), batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_corrupt_images_are_listed(cfg: CfgNode, panoptic_set, workers: int) -> None:
    for path in panoptic_set.images[:11]:
        truncate(path)
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(DataError, match=r"11 of 12 images cannot be read") as error:
        take(build_train_loader(cfg), 12)
    assert all(path.name in str(error.value) for path in panoptic_set.images[:11])


def test_all_images_corrupt(cfg: CfgNode, panoptic_set) -> None:
    dataset = DatasetCatalog.get(panoptic_set.name)[:2]
    for path in panoptic_set.images[:2]:
        truncate(path)
    with pytest.raises(DataError, match=r"2 of 2 images cannot be read"):
        take(build_train_loader(cfg, dataset=dataset), 3)


def test_limit_is_a_hundredth_of_a_large_set() -> None:
    assert TrainingDataset([{}] * 5000, mapper=dict, seed=0).limit == 50
    assert TrainingDataset([{}] * 500, mapper=dict, seed=0).limit == 10


def test_contradictions_are_not_skipped(cfg: CfgNode, panoptic_set) -> None:
    panoptic_set.edit(lambda content: content["annotations"][0]["segments_info"].pop())
    with pytest.raises(DataError, match=r"segment ids that the annotation lacks"):
        take(build_train_loader(cfg), 12)


def test_corrupt_image_is_an_error_at_test_time(cfg: CfgNode, panoptic_set) -> None:
    truncate(panoptic_set.images[0])
    with pytest.raises(DataError, match=panoptic_set.images[0].name):
        list(build_test_loader(cfg, panoptic_set.name))


# --- PackedList ---------------------------------------------------------------


def test_packed_list_gives_back_its_items() -> None:
    items = [{"a": [1, 2]}, {}, "text", None]
    packed = PackedList(items)
    assert len(packed) == 4
    assert list(packed) == items
    packed[0]["a"].append(3)
    assert packed[0] == {"a": [1, 2]}
    for index in (4, -1):
        with pytest.raises(IndexError, match="not within"):
            packed[index]
    assert len(PackedList([])) == 0


class _OwnPinning(list):
    def pin_memory(self) -> str:
        return "asked"


@pytest.mark.skipif(
    pin_memory(_OwnPinning()) != "asked",
    reason="this PyTorch asks no list to pin itself: labels go to the GPU from ordinary memory, a little slower",
)
def test_pinning_reaches_every_tensor_of_a_batch(monkeypatch: pytest.MonkeyPatch, cfg: CfgNode, panoptic_set) -> None:
    (batch,) = take(build_train_loader(cfg), 1)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    copy = pin_memory(batch)
    assert_same([copy], [batch])
    for item in batch:
        instances = item["instances"]
        for tensor in (item["image"], instances.gt_classes, instances.gt_masks.planes, instances.gt_masks.ids):
            assert any(tensor is seen for seen in pinned)
    assert copy[0]["instances"].image_size == batch[0]["instances"].image_size
    assert copy[0]["instances"].gt_boxes.masks is copy[0]["instances"].gt_masks, "nothing holds on to the others"
    assert "padding_mask" in copy[0]
