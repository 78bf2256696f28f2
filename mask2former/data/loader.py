"""From registered data sets to batches, which depend on SEED and iteration and on nothing else.

Training is one infinite stream of *positions*. The image at a position, and the random numbers that augment
it, are functions of (SEED, position), and so is the batch that takes it: neither the number of workers nor an
interruption changes them.
"""

import itertools
import logging
import multiprocessing
import os
import pickle
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.metadata import dataset_metadata
from mask2former.data.example import pinned
from mask2former.data.images import DataError, UnreadableImageError
from mask2former.data.mappers import Mapper, build_mapper
from mask2former.data.progress import Progress
from mask2former.data.sampling import (
    RatioTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    classes_of,
    repeat_factors,
)

logger = logging.getLogger(__name__)

_CLASS_LISTS = ("thing_classes", "stuff_classes")

# Keys of independent random streams that start from one SEED; those of samplers are others.
_SAMPLE, _FALLBACK = 1, 2


def build_train_loader(
    cfg: CfgNode,
    *,
    start_iteration: int = 0,
    dataset: Sequence[dict[str, Any]] | None = None,
    mapper: Mapper | None = None,
) -> DataLoader:
    """Endless batches of this process, each a list of SOLVER.IMS_PER_BATCH / processes input dicts.

    Args:
        start_iteration: the iteration that the first batch is for.
        dataset: dataset dicts instead of those of DATASETS.TRAIN.
        mapper: instead of the one that INPUT.DATASET_MAPPER_NAME names.

    Raises:
        ValueError: the batch does not divide among the processes, there are no images, there is no sampler of the
            name, or DATASETS.RATIOS does not fit.
        DataError: while iterating, for data that contradict themselves, or too many unreadable images.
    """
    total, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total < 1 or total % world_size:
        raise ValueError(f"SOLVER.IMS_PER_BATCH is {total}; it must be a multiple of the {world_size} processes")
    _check_sampler(cfg.DATALOADER.SAMPLER_TRAIN)
    parts = [dataset] if dataset is not None else load_parts(cfg)
    dataset = [record for part in parts for record in part]
    if len(dataset) == 0:
        raise ValueError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} holds no images")
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    samples = TrainingDataset(dataset, mapper or build_mapper(cfg, True), seed, workers=cfg.DATALOADER.NUM_WORKERS)
    sampler = build_train_sampler(cfg, parts, seed=seed)
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and all({"width", "height"} <= record.keys() for record in dataset)
    is_wide = [record["width"] > record["height"] for record in dataset] if grouped else [False] * len(dataset)
    batches = TrainingBatchSampler(sampler, total // world_size, is_wide=is_wide, start=start_iteration)
    return _build_loader(cfg, samples, batch_sampler=batches)


def build_train_sampler(cfg: CfgNode, parts: Sequence[Sequence[dict[str, Any]]], *, seed: int) -> TrainingSampler:
    """The order of the images of some data sets, as DATALOADER.SAMPLER_TRAIN and DATASETS.RATIOS say.

    Args:
        parts: dataset dicts of each data set; without RATIOS they are taken as one.

    Raises:
        ValueError: there is no such sampler, or DATASETS.RATIOS does not fit.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    _check_sampler(name)
    threshold, sqrt = cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
    place: dict[str, Any] = {"seed": seed, "rank": comm.get_rank(), "world_size": comm.get_world_size()}

    def build(records: Sequence[dict[str, Any]], number: int = 0) -> TrainingSampler:
        if name == "TrainingSampler":
            return TrainingSampler(len(records), number=number, **place)
        classes = classes_of(records, ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
        return RepeatFactorTrainingSampler(repeat_factors(classes, threshold, sqrt=sqrt), number=number, **place)

    if cfg.DATASETS.RATIOS:
        return RatioTrainingSampler([build(part, n) for n, part in enumerate(parts)], cfg.DATASETS.RATIOS, **place)
    return build([record for part in parts for record in part])


def build_test_loader(cfg: CfgNode, dataset_name: str, *, mapper: Mapper | None = None) -> DataLoader:
    """Batches of one image, this process's share of the data set; an unreadable image is an error."""
    dataset = load_datasets([dataset_name], filter_empty=False)
    if not dataset:
        raise ValueError(f"data set {dataset_name} holds no images")
    samples = TestDataset(dataset, mapper or build_mapper(cfg, False), workers=cfg.DATALOADER.NUM_WORKERS)
    sampler = InferenceSampler(len(dataset), rank=comm.get_rank(), world_size=comm.get_world_size())
    return _build_loader(cfg, samples, sampler=sampler)


def _check_sampler(name: str) -> None:
    if name not in ("TrainingSampler", "RepeatFactorTrainingSampler"):
        known = "TrainingSampler and RepeatFactorTrainingSampler"
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; there are {known}")


def load_parts(cfg: CfgNode) -> list[list[dict[str, Any]]]:
    """The dataset dicts of each data set of DATASETS.TRAIN, in one list where no DATASETS.RATIOS tell them apart."""
    names, filter_empty = cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if not cfg.DATASETS.RATIOS:
        return [load_datasets(names, filter_empty=filter_empty)]
    _check_classes(names)
    return [load_datasets([name], filter_empty=filter_empty) for name in names]


def load_datasets(names: Sequence[str], *, filter_empty: bool) -> list[dict[str, Any]]:
    """The dataset dicts of all `names`.

    Args:
        filter_empty: leave out images annotated with nothing but crowds.

    Raises:
        ValueError: the sets do not have the same classes in the same order.
    """
    dicts = [record for name in names for record in DatasetCatalog.get(name)]
    _check_classes(names)
    if not filter_empty:
        return dicts
    kept = [record for record in dicts if _has_objects(record)]
    if len(kept) < len(dicts):
        logger.info("Left out %d of %d images without annotations", len(dicts) - len(kept), len(dicts))
    objects = sum(len(record.get("annotations") or record.get("segments_info") or []) for record in kept)
    classes = max((MetadataCatalog.get(names[0]).get(key, []) for key in _CLASS_LISTS), key=len)
    logger.info("Data sets %s: %d images, %d objects, %d classes", ", ".join(names), len(kept), objects, len(classes))
    return kept


def _check_classes(names: Sequence[str]) -> None:
    for key in _CLASS_LISTS:
        classes = [dataset_metadata(name).get(key) for name in names]
        if any(other != classes[0] for other in classes):
            raise ValueError(f"the data sets {', '.join(names)} differ in {key}; one model cannot train on them")


def _has_objects(record: dict[str, Any]) -> bool:
    for key in ("annotations", "segments_info"):
        if key in record:
            return any(not item.get("iscrowd", 0) for item in record[key])
    return True


def _build_loader(cfg: CfgNode, dataset: Dataset, **sampling: Any) -> DataLoader:
    return DataLoader(
        dataset,
        **sampling,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_Batch,
        worker_init_fn=_init_worker,
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda" and torch.cuda.is_available(),
        generator=torch.Generator(),  # the global one is for the model's numbers
    )


class _Batch(list[dict[str, Any]]):
    """Input dicts, which the loader pins itself: it would not look into `Instances`. PyTorch 2.6 does not ask."""

    def pin_memory(self) -> "_Batch":
        """All tensors in memory that a GPU copies from without the host waiting."""
        return _Batch(map(pinned, self))


def _init_worker(worker_id: int) -> None:
    """Workers are the parallelism: threads inside them only get in each other's way."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()


def _obey(parent: int) -> None:
    """End on SIGTERM of the process that trains; to one for the whole group it answers by itself, and saves."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class TrainingBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of a `TrainingSampler`, each of images that are wide, or of images that are not: these need less padding.

    As in Detectron2's loader, a batch is given when it is full; which are, is found out from the first position on.
    """

    def __init__(self, sampler: TrainingSampler, batch_size: int, *, is_wide: Sequence[bool], start: int = 0) -> None:
        """
        Args:
            is_wide: of each index, the group that it belongs to.
            start: number of batches to leave out.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.is_wide = np.asarray(is_wide, dtype=np.int64).tolist()
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        groups: list[list[tuple[int, int]]] = [[], []]
        for pair in self.sampler:
            group = groups[self.is_wide[pair[1]]]
            group.append(pair)
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()


class InferenceSampler(Sampler[int]):
    """Every index once over all processes; each process has one stretch, with one index more or less."""

    def __init__(self, size: int, *, rank: int = 0, world_size: int = 1) -> None:
        begin, end = (size * number // world_size for number in (rank, rank + 1))
        self.indices = range(begin, end)

    def __iter__(self) -> Iterator[int]:
        yield from self.indices

    def __len__(self) -> int:
        return len(self.indices)


class TrainingDataset(Dataset[dict[str, Any]]):
    """Maps the dict at (position, index) under random numbers fixed by (seed, position).

    An image that cannot be read is skipped: it is logged, and another one, fixed by (seed, position), takes
    its place. When more than 1 % of the images and more than 10 turn out so, or all of them, it is an error.

    Attributes:
        progress: at which image each worker is.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]], mapper: Mapper, seed: int, *, workers: int = 0) -> None:
        self.progress = Progress(workers)
        self.dicts = PackedList(dicts)
        self.mapper = mapper
        self.seed = seed
        self.limit = min(max(10, len(dicts) // 100), len(dicts) - 1)
        # In shared memory: all workers count the same unreadable images.
        self.unreadable = torch.zeros(len(dicts), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        position, index = item
        fallback = _generator(self.seed, _FALLBACK, position)
        while True:
            try:
                with _seeded(self.seed, position), self.progress.at(index):
                    return self.mapper(self.dicts[index])
            except UnreadableImageError as error:
                self._count_unreadable(index, error)
                index = int(fallback.integers(len(self.dicts)))

    def _count_unreadable(self, index: int, error: UnreadableImageError) -> None:
        if not self.unreadable[index]:
            self.unreadable[index] = True
            logger.warning("Skipped in training, another image takes its place: %s", error)
        snapshot = self.unreadable.clone()  # nonzero() aborts when another worker sets a flag meanwhile
        indices = snapshot.nonzero().flatten().tolist()
        if len(indices) > self.limit:
            names = "\n".join(self.dicts[number]["file_name"] for number in indices)
            raise DataError(f"{len(indices)} of {len(self.dicts)} images cannot be read:\n{names}") from error


class TestDataset(Dataset[dict[str, Any]]):
    """Maps the dict at an index.

    Attributes:
        progress: at which image each worker is.
    """

    __test__ = False  # not a test case of pytest

    def __init__(self, dicts: Sequence[dict[str, Any]], mapper: Mapper, *, workers: int = 0) -> None:
        self.progress = Progress(workers)
        self.dicts = PackedList(dicts)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.progress.at(index):
            return self.mapper(self.dicts[index])


class PackedList(Sequence[Any]):
    """Objects pickled into one tensor, which worker processes share; of a list each would make a copy."""

    def __init__(self, items: Sequence[Any]) -> None:
        packed = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = torch.tensor([len(item) for item in packed], dtype=torch.int64).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(packed) or b"\0"), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """The object at an index >= 0; each call makes a new one."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not within 0..{len(self) - 1}")
        begin = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._bytes[begin : int(self._ends[index])].numpy().tobytes())


def _seeds(seed: int, stream: int, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(stream, number))


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng(_seeds(seed, stream, number))


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Fixes random numbers (of `random`, numpy, torch on the CPU) inside; restores their states after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = _seeds(seed, _SAMPLE, position).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed would seed CUDA too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
