"""What the evaluators share: each image once, the results of all processes together, data sets without labels."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any

from mask2former.d2 import comm
from mask2former.d2.data import DatasetCatalog, Metadata
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.data.datasets.metadata import dataset_metadata

logger = logging.getLogger(__name__)

_NAMED = 10  # how many images a message names


class ImageEvaluator(DatasetEvaluator):
    """Scores a data set image by image. Where it has no labels, predictions are written and nothing is scored.

    Subclasses call `_add` in `process`, and `_gather` in `evaluate`.
    """

    def __init__(self, dataset_name: str, output_dir: str | None, *, distributed: bool) -> None:
        """
        Args:
            dataset_name: a registered data set.
            output_dir: folder for predictions, or None.
            distributed: whether each process sees a share of the images; otherwise each is on its own.
        """
        self._metadata: Metadata = dataset_metadata(dataset_name)
        self._output_dir = output_dir
        self._distributed = distributed

    def reset(self) -> None:
        self._seen: set[Hashable] = set()

    def _check_labels(self, exist: bool) -> None:
        """Raises `ValueError` if there are neither labels nor a place for predictions."""
        if not exist and self._output_dir is None:
            raise ValueError(
                f"data set {self._metadata.name!r} has no labels to score, and no output_dir was given to write its "
                "predictions to"
            )

    def _add(self, image_id: Hashable) -> None:
        """Note an image; raises `ValueError` if it has been noted before."""
        if image_id in self._seen:
            raise ValueError(f"image {image_id!r} was evaluated twice")
        self._seen.add(image_id)

    def _gather(self, value: Any, expected: Iterable[Hashable] | None = None) -> list[Any] | None:
        """The values of all processes, or None in those that do not report. Every process must call this.

        Images of the data set that no process has seen are left out of the metrics, and a warning says so.

        Args:
            expected: the images of the data set; None asks the catalog.

        Raises:
            ValueError: an image was processed by two processes, so the sampler repeats images.
        """
        name = self._metadata.name
        seen = comm.all_gather(self._seen) if self._distributed else [self._seen]
        counts = Counter(image_id for of_process in seen for image_id in of_process)
        twice = [image_id for image_id, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{name}: {len(twice)} images were evaluated on more than one rank: {_some(twice)}")
        gathered = comm.gather(value) if self._distributed else [value]
        if self._distributed and not comm.is_main_process():
            return None
        expected = [image_key(record) for record in DatasetCatalog.get(name)] if expected is None else list(expected)
        missing = [image_id for image_id in expected if image_id not in counts]
        if missing:
            logger.warning(
                "%s: no prediction for %d of %d images, the results cover the others only: %s",
                name, len(missing), len(expected), _some(missing),
            )  # fmt: skip
        return gathered

    def _unscored(self) -> dict[str, dict[str, float]]:
        """The result for a data set without labels."""
        logger.info(
            "%s has no labels: its predictions were written to %s, and nothing was scored",
            self._metadata.name,
            self._output_dir,
        )
        return {}


def image_key(record: dict[str, Any]) -> Hashable:
    """What names an image: its id, or its file where it has none."""
    return record["image_id"] if "image_id" in record else record["file_name"]


def _some(image_ids: list[Hashable]) -> str:
    text = ", ".join(str(image_id) for image_id in image_ids[:_NAMED])
    return text + (", …" if len(image_ids) > _NAMED else "")
