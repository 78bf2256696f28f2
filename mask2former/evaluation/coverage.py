"""Which images an evaluator has seen: none twice, and a warning for those that are missing."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable

from mask2former.d2 import comm

logger = logging.getLogger(__name__)

_NAMED = 10  # how many images a message names


class Coverage:
    """The images that the evaluators of all ranks have processed."""

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()

    def add(self, image_id: Hashable) -> None:
        """Note an image.

        Raises:
            ValueError: it has been noted before.
        """
        if image_id in self._seen:
            raise ValueError(f"image {image_id!r} was evaluated twice")
        self._seen.add(image_id)

    def check(self, expected: Iterable[Hashable], *, dataset: str) -> None:
        """Compare the images of all ranks with those of the data set. Every rank must call this.

        Images that no rank has seen are left out of the metrics, and a warning says so.

        Raises:
            ValueError: an image was processed by two ranks, so the sampler repeats images.
        """
        counts = Counter(image_id for seen in comm.all_gather(self._seen) for image_id in seen)
        twice = [image_id for image_id, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{dataset}: {len(twice)} images were evaluated on more than one rank: {_some(twice)}")
        expected = list(expected)
        missing = [image_id for image_id in expected if image_id not in counts]
        if missing and comm.is_main_process():
            logger.warning(
                "%s: no prediction for %d of %d images, the metrics cover the others only: %s",
                dataset,
                len(missing),
                len(expected),
                _some(missing),
            )


def _some(image_ids: list[Hashable]) -> str:
    text = ", ".join(str(image_id) for image_id in image_ids[:_NAMED])
    return text + (", …" if len(image_ids) > _NAMED else "")
