"""The interface of evaluators."""

from typing import TYPE_CHECKING

from mask2former.d2 import SOURCE

if TYPE_CHECKING or SOURCE == "bundled":
    from mask2former.d2.bundled.evaluation import (
        DatasetEvaluator,
        DatasetEvaluators,
    )
else:
    from detectron2.evaluation import (
        DatasetEvaluator,
        DatasetEvaluators,
    )

__all__ = ["DatasetEvaluator", "DatasetEvaluators"]
