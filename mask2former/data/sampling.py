"""In which order training takes images: endless epochs, fixed by the seed, shared among processes.

A stream starts at its first position each time that it is asked for, so that a resumed run finds its place by counting.
"""

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from mask2former.data.labels import read_labels
from mask2former.data.summary import ENTRIES, SEMANTIC, kind_of

# Keys of independent random streams that start from one seed; the loader's own are 1 and 2.
_ORDER, _MIX, _REPEAT = 0, 3, 4


class TrainingSampler(Sampler[tuple[int, int]]):
    """Endless pairs (position, index): epochs of all indices, each shuffled on its own."""

    def __init__(
        self, size: int, *, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True, number: int = 0
    ) -> None:
        """
        Args:
            size: number of images.
            seed: decides the order; the same in all processes.
            rank: this process; it takes every `world_size`-th position.
            number: of the data set, where several samplers share the seed.
        """
        if size < 1:
            raise ValueError(f"a sampler needs images to sample from, not {size}")
        self.size = size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.number = number

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = 0
        for order in self.epochs():
            for position in range(first + (self.rank - first) % self.world_size, first + len(order), self.world_size):
                yield position, order[position - first]
            first += len(order)

    def epochs(self) -> Iterator[Sequence[int]]:
        """The indices of each epoch in their order."""
        for epoch in itertools.count():
            yield self.shuffled(range(self.size), epoch)

    def shuffled(self, indices: Sequence[int], epoch: int) -> Sequence[int]:
        """The indices in the order of an epoch."""
        if not self.shuffle:
            return indices
        order = self.generator(_ORDER, epoch).permutation(len(indices))
        return np.asarray(indices)[order].tolist()

    def generator(self, stream: int, epoch: int) -> np.random.Generator:
        """Random numbers for one purpose in one epoch."""
        key = (stream, epoch, self.number) if self.number else (stream, epoch)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


class RepeatFactorTrainingSampler(TrainingSampler):
    """Images of rare classes come several times in an epoch, as often as `repeat_factors` says on average.

    Gupta et al., "LVIS", CVPR 2019, appendix B.2; the fraction of a factor is drawn anew in each epoch.
    """

    def __init__(self, factors: Sequence[float], **kwargs: Any) -> None:
        """
        Args:
            factors: of each image, 1 or more.
            kwargs: as of `TrainingSampler`.
        """
        super().__init__(len(factors), **kwargs)
        self.factors = np.asarray(factors, dtype=np.float64)

    def epochs(self) -> Iterator[Sequence[int]]:
        whole = np.floor(self.factors).astype(np.int64)
        for epoch in itertools.count():
            drawn = self.generator(_REPEAT, epoch).random(self.size) < self.factors - whole
            yield self.shuffled(np.repeat(np.arange(self.size), whole + drawn).tolist(), epoch)


class RatioTrainingSampler(TrainingSampler):
    """Several data sets, of which each gives its share of the images whatever its size; indices are of all together.

    Each data set goes through epochs of its own; a small one with a large share comes round more often. An epoch of
    this sampler is as long as all images are many, and within it each has its share, to the nearest image.
    """

    def __init__(self, parts: Sequence[TrainingSampler], ratios: Sequence[float], **kwargs: Any) -> None:
        """
        Args:
            parts: a sampler for each data set.
            ratios: how many images of each come for those of the others.
            kwargs: as of `TrainingSampler`.

        Raises:
            ValueError: not one positive number for each data set.
        """
        if len(ratios) != len(parts) or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
            raise ValueError(
                f"DATASETS.RATIOS {tuple(ratios)} must have a positive number for each of the {len(parts)} data sets"
            )
        super().__init__(sum(part.size for part in parts), **kwargs)
        self.parts = list(parts)
        self.ratios = list(ratios)

    def epochs(self) -> Iterator[Sequence[int]]:
        first = np.cumsum([0, *(part.size for part in self.parts)])
        borders = np.cumsum([0, *self.ratios]) / sum(self.ratios)
        streams = [itertools.chain.from_iterable(part.epochs()) for part in self.parts]
        for epoch in itertools.count():
            # Where the shares end, counted from the start of training: what is rounded in one epoch is not lost.
            ends = [np.round(borders * self.size * number).astype(int) for number in (epoch, epoch + 1)]
            counts = np.diff(ends[1]) - np.diff(ends[0])
            indices = [
                int(offset) + index
                for offset, stream, count in zip(first, streams, counts, strict=False)
                for index in itertools.islice(stream, int(count))
            ]
            order = self.generator(_MIX, epoch).permutation(len(indices)) if self.shuffle else range(len(indices))
            yield [indices[place] for place in order]


def repeat_factors(classes: Sequence[set[int]], threshold: float, *, sqrt: bool = True) -> list[float]:
    """How often to repeat each image: max over its classes of max(1, sqrt(threshold / share of images with the class)).

    Args:
        classes: of each image; one without classes comes once.
        threshold: share of images below which a class is rare.
        sqrt: False leaves the root out.
    """
    images = Counter(category for found in classes for category in found)
    factor = {}
    for category, count in images.items():
        ratio = threshold / (count / len(classes))
        factor[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
    return [max((factor[category] for category in found), default=1.0) for found in classes]


def classes_of(records: Sequence[Mapping[str, Any]], *, ignore_label: int = 255) -> list[set[int]]:
    """The classes in each image: of its annotations or segments, crowds too, or of its label map, which is read.

    Raises:
        ValueError: images without annotations.
    """
    kind = kind_of(records)
    if kind in ENTRIES:
        return [{entry["category_id"] for entry in record[ENTRIES[kind]]} for record in records]
    if kind != SEMANTIC:
        raise ValueError("repeat factors need annotations, which these images lack: set DATALOADER.SAMPLER_TRAIN anew")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(_labels_of, ignore_label=ignore_label), records))


def _labels_of(record: Mapping[str, Any], *, ignore_label: int) -> set[int]:
    return {*np.unique(read_labels(record)).tolist()} - {ignore_label}
