"""The classes of a model as results call them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mask2former.d2.data import Metadata
from mask2former.data.datasets.metadata import dataset_ids


@dataclass(frozen=True)
class Classes:
    """Names and ids, by the place of a class in the model's output."""

    categories: list[dict[str, Any]] = field(default_factory=list)
    """COCO's records: `id`, `name`, `isthing`, and `color` if it is known."""

    @staticmethod
    def of(metadata: Metadata, task: str) -> Classes:
        """Those that metadata know.

        Ids are those of the data set that the model was trained on, where these are known and the task is not semantic
        segmentation, whose pixels hold places in the output; else they are places in the output.
        """
        names = metadata.get("stuff_classes") or metadata.get("thing_classes") or []
        colors = metadata.get("stuff_colors") or metadata.get("thing_colors") or [None] * len(names)
        things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        known = {} if task == "semantic" else dataset_ids(metadata)
        return Classes(
            [
                {
                    "id": known.get(index, index),
                    "name": name,
                    "isthing": int(index in things),
                    **({"color": list(color)} if color else {}),
                }
                for index, (name, color) in enumerate(zip(names, colors, strict=True))
            ]
        )

    def name(self, index: int) -> str:
        """The name of a class; its number if it has none."""
        return str(self.categories[index]["name"]) if index < len(self.categories) else str(index)

    def id(self, index: int) -> int:
        """The id of a class in files."""
        return int(self.categories[index]["id"]) if index < len(self.categories) else index
