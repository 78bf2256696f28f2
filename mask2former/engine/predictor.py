"""Segmenting one image at a time with a trained model."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.checkpoint import check_config, checkpoint_config, load_weights
from mask2former.d2.config import CfgNode
from mask2former.d2.data import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.d2.modeling import build_model
from mask2former.d2.structures import Instances
from mask2former.d2.transforms import AugInput, AugmentationList
from mask2former.data.augmentation import build_test_augmentation
from mask2former.data.datasets.metadata import dataset_metadata, metadata_of
from mask2former.engine.setup import use_available_device
from mask2former.evaluation.instance import DEFAULT_THRESHOLD
from mask2former.evaluation.pictures import draw_output

logger = logging.getLogger(__name__)


class Predictor:
    """A model with its weights and the preparation of its images, like Detectron2's DefaultPredictor.

    Attributes:
        metadata: names, colours and kinds of the classes, for drawing: MODEL.CATEGORIES, else what the checkpoint
            says, else what is registered of the first data set of DATASETS.TEST.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        score_threshold: float | None = None,
        max_instances: int | None = None,
        input_format: str = "BGR",
        allow_missing_weights: bool = False,
    ) -> None:
        """
        Args:
            cfg: a complete config, such as `config.yaml` of a run; MODEL.WEIGHTS is loaded. It is copied, not changed.
                Where MODEL.DEVICE is "cuda" and there is no usable GPU, the CPU predicts.
            score_threshold: instances with a lower score, in 0..1, are dropped. None: of each class those below the
                score of highest F1 that the checkpoint knows from its last evaluation, else none.
            max_instances: at most this many instances, the best ones; TEST.DETECTIONS_PER_IMAGE by default.
            input_format: channel order of the images that will be given, "BGR" (as OpenCV reads) or "RGB".
            allow_missing_weights: predict also with random weights, where MODEL.WEIGHTS is empty or lacks some.

        Raises:
            ValueError: an option is out of range.
            FileNotFoundError: MODEL.WEIGHTS does not exist.
            CheckpointError: MODEL.WEIGHTS is empty or does not fill the model.
        """
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must lie in 0..1, not {score_threshold}")
        if max_instances is not None and max_instances < 1:
            raise ValueError(f"max_instances must be at least 1, not {max_instances}")
        for name, value in (("input_format", input_format), ("INPUT.FORMAT", cfg.INPUT.FORMAT)):
            if value not in ("BGR", "RGB"):
                raise ValueError(f"{name} must be BGR or RGB, not {value!r}")
        self.cfg = use_available_device(cfg)
        self.cfg.defrost()
        if max_instances is not None:
            self.cfg.TEST.DETECTIONS_PER_IMAGE = max_instances
        self.cfg.freeze()
        self.score_threshold: float | list[float] = score_threshold or 0.0
        self.max_instances = max_instances
        categories = list(cfg.MODEL.CATEGORIES)
        if not categories:
            for name in cfg.DATASETS.TRAIN[:1]:  # from whose metadata the model knows the things
                _complete_metadata(name)
            self.metadata = _complete_metadata(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unnamed__")
        self.model = build_model(self.cfg).eval()
        if cfg.MODEL.WEIGHTS or not allow_missing_weights:
            if cfg.MODEL.WEIGHTS and Path(cfg.MODEL.WEIGHTS).expanduser().is_dir():
                check_config(cfg, cfg.MODEL.WEIGHTS)
            report = load_weights(
                self.model,
                cfg.MODEL.WEIGHTS,
                complete=not allow_missing_weights,
                averaged=cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY,
            )
            categories = categories or list(report.categories)
            if score_threshold is None:
                self.score_threshold = _thresholds(report.score_thresholds, categories) or 0.0
        else:
            logger.warning("MODEL.WEIGHTS is empty: this predictor has random weights")
        if categories:
            self.metadata = metadata_of(categories)
            if hasattr(self.model, "metadata"):
                setattr(self.model, "metadata", self.metadata)  # noqa: B010, from which it knows the things
        self._augmentation = AugmentationList(build_test_augmentation(self.cfg))
        self._input_format = input_format
        self._swap_channels = input_format != cfg.INPUT.FORMAT

    @classmethod
    def from_checkpoint(cls, weights: str | os.PathLike[str], *, device: str = "", **options: Any) -> "Predictor":
        """A predictor for weights that say which model they belong to; no config file is needed, and no data set.

        Args:
            weights: `model_final.pth` of a training, wherever it lies; a folder of transformers; or a published model,
                such as `zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep`. See `checkpoint_config`.
            device: "cpu", "cuda", ...; by default a GPU if there is one.
            options: of `Predictor`.

        Raises:
            FileNotFoundError: there are no such weights.
            CheckpointError: they cannot be read, or do not say which model they belong to.
        """
        cfg = checkpoint_config(weights)
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(cfg, **options)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """The model's output for an image uint8 (H, W, 3), at the image's own size.

        `instances`, where the model makes them, are sorted by score.

        Raises:
            ValueError: not an image of three 8-bit channels.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an image uint8 (H, W, 3), got {image.dtype}{image.shape}")
        height, width = image.shape[:2]
        augmented = AugInput(image[:, :, ::-1] if self._swap_channels else image)
        self._augmentation(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        output = self.model([{"image": tensor, "height": height, "width": width}])[0]
        if "instances" in output:
            output["instances"] = select_instances(
                output["instances"], score_threshold=self.score_threshold, max_instances=self.max_instances
            )
        return output

    def draw(self, image: np.ndarray, output: dict[str, Any]) -> np.ndarray:
        """The image, in its own channel order, under the first that `output` has of panoptic, instances, semantic.

        Returns:
            uint8 (H, W, 3), a whole number of times as large as a small image.
        """
        order = slice(None, None, -1 if self._input_format == "BGR" else 1)
        rgb = np.ascontiguousarray(image[:, :, order])
        drawn = draw_output(rgb, output, self.metadata, score_threshold=0.0)
        return drawn[:, :, order]


def select_instances(
    instances: Instances, *, score_threshold: float | Sequence[float] = 0.0, max_instances: int | None = None
) -> Instances:
    """The instances with at least that score, best first, at most `max_instances`.

    Args:
        score_threshold: of all, or of each class.
    """
    scores: Tensor = instances.scores
    order = scores.argsort(descending=True, stable=True)
    limits = torch.as_tensor(score_threshold, dtype=scores.dtype, device=scores.device)
    order = order[scores[order] >= (limits[instances.pred_classes[order]] if limits.ndim else limits)]
    return instances[order[:max_instances]]


def _thresholds(known: Mapping[str, Mapping[str, float]], categories: Sequence[Mapping[str, Any]]) -> list[float]:
    """The score of highest F1 of each class, on the first data set that has some; nothing where none has."""
    of_class = next((scores for scores in known.values() if scores), None)
    if of_class is None:
        return []
    return [of_class.get(category["name"], DEFAULT_THRESHOLD) for category in categories]


def _complete_metadata(name: str) -> Metadata:
    """Metadata of a data set. Of one that is not registered, what the caller has set, if anything."""
    return dataset_metadata(name) if name in DatasetCatalog else MetadataCatalog.get(name)
