"""What an exported file says of its model, so that it can be used without this package.

A JSON text under the key `mask2former` of the file's metadata:

- `version`: of this package, which wrote it; `task`: the one that tells most of those that the model is for;
- `categories`: the classes in the order of the output: `name`, `isthing`, and as far as known `id` and `color`;
- `score_thresholds`: for each class the score of instances with the highest F1, empty if it is not known;
- `input`: `format`, the order of channels (BGR or RGB); `min_size` and `max_size`, what the short and the long side of
  images are resized to; `size_divisibility`, what the graph pads images to;
- `postprocessing`: the settings of what follows the logits, and `in_graph`, whether it is part of the file;
- `outputs`: names in their order;
- `config_yaml`: the complete config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mask2former.checkpoint.description import describe, task_of
from mask2former.d2.config import CfgNode

from .errors import ExportError

KEY = "mask2former"


def describe_export(
    cfg: CfgNode,
    categories: Sequence[Mapping[str, Any]],
    *,
    score_thresholds: Sequence[float],
    size_divisibility: int,
    outputs: Sequence[str],
    in_graph: bool,
) -> str:
    """The text for a file's metadata."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return json.dumps(
        {
            **describe(cfg),
            "categories": [dict(category) for category in categories],
            "score_thresholds": list(score_thresholds),
            "input": {
                "format": cfg.INPUT.FORMAT,
                "min_size": cfg.INPUT.MIN_SIZE_TEST,
                "max_size": cfg.INPUT.MAX_SIZE_TEST,
                "size_divisibility": size_divisibility,
            },
            "postprocessing": {
                "task": task_of(cfg),
                "in_graph": in_graph,
                "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
                "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
                "overlap_threshold": test.OVERLAP_THRESHOLD,
            },
            "outputs": list(outputs),
        }
    )


def read_description(metadata: Mapping[str, str], source: object) -> dict[str, Any]:
    """What `describe_export` wrote into the metadata of a file.

    Raises:
        ExportError: it is not there.
    """
    if KEY not in metadata:
        raise ExportError(f"{source} was not written by `mask2former export`: its metadata lacks {KEY!r}")
    description: dict[str, Any] = json.loads(metadata[KEY])
    return description
