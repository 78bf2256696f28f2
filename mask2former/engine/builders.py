"""What a trainer builds its parts with, and how it evaluates: what subclasses override."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mask2former.d2 import comm
from mask2former.d2.config import CfgNode
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.d2.modeling import build_model
from mask2former.data.loader import build_test_loader, build_train_loader
from mask2former.engine.checks import check_setup
from mask2former.engine.optimizer import build_optimizer
from mask2former.engine.schedules import build_lr_scheduler
from mask2former.engine.test_time_augmentation import SemanticSegmentorWithTTA, semantic_only
from mask2former.evaluation.build import build_evaluators
from mask2former.evaluation.engine import inference_on_dataset, print_results
from mask2former.tiling import in_tiles

logger = logging.getLogger(__name__)


class Builders:
    """The classmethods of Detectron2's `DefaultTrainer`: each builds one part from the config, or evaluates."""

    check_setup = staticmethod(check_setup)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model on its device."""
        return build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See `mask2former.engine.optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """See `mask2former.engine.schedules`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0) -> Iterable[list[dict[str, Any]]]:
        """Endless batches (this process's share of each), beginning with that of `start_iteration`."""
        return build_train_loader(cfg, start_iteration=start_iteration)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """This process's share of a data set, once."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluators of a data set; predictions are written to <output_folder>/<data set>.

        The folder is OUTPUT_DIR/inference by default.
        """
        folder = Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference")
        return build_evaluators(cfg, dataset_name, str(folder / dataset_name))

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate on every data set of DATASETS.TEST; all processes call it, the main one logs the tables.

        Args:
            evaluators: one per data set, in place of those from `build_evaluator`.

        Returns:
            In the main process results by task, or by data set and task if there are several data sets.
        """
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in names]
        model = in_tiles(cfg, model)
        results: dict[str, Any] = {}
        for name, evaluator in zip(names, evaluators, strict=True):
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:", name)
                print_results(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:  # noqa: N802, the published name
        """`test` of semantic outputs with test-time augmentation, see TEST.AUG; its keys get the ending `_TTA`.

        Predictions are written to OUTPUT_DIR/inference_TTA.
        """
        logger.info("Evaluating with test-time augmentation")
        cfg = semantic_only(cfg)
        return cls._test_apart(cfg, SemanticSegmentorWithTTA(cfg, model), "_TTA")

    @classmethod
    def test_ema(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """`test` of the average of the weights, see MODEL_EMA; its keys get the ending `_EMA`.

        Predictions are written to OUTPUT_DIR/inference_EMA.
        """
        logger.info("Evaluating the average of the weights")
        return cls._test_apart(cfg, model, "_EMA")

    @classmethod
    def _test_apart(cls, cfg: CfgNode, model: nn.Module, ending: str) -> dict[str, Any]:
        folder = str(Path(cfg.OUTPUT_DIR) / f"inference{ending}")
        evaluators = [cls.build_evaluator(cfg, name, output_folder=folder) for name in cfg.DATASETS.TEST]
        return {f"{key}{ending}": value for key, value in cls.test(cfg, model, evaluators).items()}
