"""The interface of evaluators."""

from typing import TYPE_CHECKING

from mask2former.d2 import objects

__all__ = ["DatasetEvaluator", "DatasetEvaluators"]

if TYPE_CHECKING:
    from mask2former.d2.bundled.evaluation import *
else:
    globals().update(objects(__all__, bundled=("evaluation",), official="evaluation"))
