"""Segmenting images with a trained model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mask2former.checkpoint import checkpoint_config
from mask2former.d2.config import CfgNode
from mask2former.d2.structures import Instances
from mask2former.d2.transforms import AugInput, AugmentationList
from mask2former.data.augmentation import build_test_augmentation
from mask2former.data.datasets.metadata import categories_of
from mask2former.engine.setup import use_available_device
from mask2former.evaluation.instance import DEFAULT_THRESHOLD
from mask2former.evaluation.pictures import draw_output
from mask2former.predict.batches import in_batches
from mask2former.predict.inputs import Images, OnError, Picture, read_picture, read_pictures
from mask2former.predict.result import Result
from mask2former.predict.sources import load, source_config, with_task
from mask2former.tiling import Tiles, in_tiles, predict_in_tiles

if TYPE_CHECKING:
    from mask2former.export import Comparison


@dataclass(frozen=True, eq=False)
class _Prepared:
    picture: Picture
    inputs: dict[str, Any]


class Predictor:
    """A model with its weights and the preparation of its images.

    Attributes:
        cfg: its config.
        model: what segments, see `Segmenter`.
        metadata: names, colours and kinds of the classes: MODEL.CATEGORIES, else what the checkpoint says, else what is
            registered of the first data set of DATASETS.TEST.
        tiles: how larger images are cut, if they are.
        score_threshold: instances with a lower score are left out; one for all classes, or one for each.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | CfgNode,
        *,
        task: str | None = None,
        threshold: float | None = None,
        max_instances: int | None = None,
        tile: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        device: str = "",
        input_format: str | None = None,
        ema: bool = False,
        score_threshold: float | None = None,
        allow_missing_weights: bool = False,
    ) -> None:
        """
        Args:
            source: the name of a published model, such as `coco/panoptic-segmentation/maskformer2_R50_bs16_50ep`, which
                is downloaded once; a checkpoint of a training; a folder of transformers; a file that
                `mask2former export` wrote. Or a complete config, whose MODEL.WEIGHTS are loaded; it is copied. With a
                config the predictor is like Detectron2's DefaultPredictor, see `task`, `threshold`, `input_format`.
            task: "panoptic", "instance" or "semantic": what to find; "auto": the first of these that the model was made
                for. By default "auto", but with a config all outputs that it turns on.
            threshold: least score, in 0..1, of instances, and of what takes part in panoptic segmentation. By default
                of instances what the checkpoint knows as best for each class from its last evaluation, else 0.5, but
                with a config none; of panoptic segmentation the config's.
            max_instances: at most so many instances, the best ones; by default the config's TEST.DETECTIONS_PER_IMAGE,
                which with tiles holds for each of them.
            tile: larger images are cut into tiles of that size, pixels or (height, width), each of which is predicted
                like an image of its own, see `Tiles` and `predict_in_tiles`. By default images are predicted whole.
            stride: from one tile to the next, by default three quarters of a tile.
            device: "cpu", "cuda", ...; by default a GPU if there is one, but with a config MODEL.DEVICE, or the CPU
                where that is "cuda" and there is no usable GPU.
            input_format: channel order of arrays, "RGB" or "BGR" (as OpenCV reads). By default "RGB", but with a config
                "BGR". Files and images of Pillow's tell their order themselves.
            ema: use the running average of the weights, which a checkpoint may hold beside them.
            score_threshold: like `threshold`, of instances alone.
            allow_missing_weights: predict also with random weights, where MODEL.WEIGHTS is empty or lacks some.

        Raises:
            ValueError: an option is out of range.
            FileNotFoundError: there is no such source.
            CheckpointError: its weights cannot be read, or do not fill the model.
        """
        named = not isinstance(source, CfgNode)
        input_format = input_format or ("RGB" if named else "BGR")
        _check_options(threshold, score_threshold, max_instances, input_format)
        cfg = source if isinstance(source, CfgNode) else _named_config(source)
        if task is not None or named:
            cfg = with_task(cfg, task or "auto")
        cfg = cfg.clone()
        cfg.defrost()
        if device:
            cfg.MODEL.DEVICE = device
        if threshold is not None:
            cfg.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD = threshold
        if max_instances is not None:
            cfg.TEST.DETECTIONS_PER_IMAGE = max_instances
        if ema:
            cfg.MODEL_EMA.USE_EMA_WEIGHTS_FOR_EVAL_ONLY = True
        if tile is None and stride is not None:
            raise ValueError("a stride needs tiles: give their size as tile")
        self.tiles = None if tile is None else Tiles(tile, stride)
        self._labels_only: bool = cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS
        if self.tiles is not None or cfg.TEST.TILE_SIZE:
            cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS = False  # labels have no mean
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT must be BGR or RGB, not {cfg.INPUT.FORMAT!r}")
        self.cfg = use_available_device(cfg)
        loaded = load(self.cfg, allow_missing_weights=allow_missing_weights)
        self.cfg.freeze()
        self.model: Any = loaded.segmenter
        self.metadata = loaded.metadata
        self.max_instances = max_instances
        given = threshold if score_threshold is None else score_threshold
        unknown = DEFAULT_THRESHOLD if named else 0.0
        self.score_threshold: float | list[float] = list(loaded.score_thresholds) or unknown if given is None else given
        self._augmentation = AugmentationList(build_test_augmentation(self.cfg))
        self._input_format = input_format

    @classmethod
    def from_checkpoint(cls, weights: str | os.PathLike[str], *, device: str = "", **options: Any) -> Predictor:
        """A predictor for weights that say which model they belong to; no config file is needed, and no data set.

        Unlike with `Predictor(weights)` all outputs are made that their config turns on, arrays are BGR unless
        `input_format` is "RGB", and instances have any score where the checkpoint knows no least one.

        Args:
            weights: `model_final.pth` of a training, wherever it lies; a folder of transformers; or a published model,
                such as `zoo://coco/panoptic-segmentation/maskformer2_R50_bs16_50ep`. See `checkpoint_config`.
            device: "cpu", "cuda", ...; by default a GPU if there is one.
            options: of `Predictor`.

        Raises:
            FileNotFoundError: there are no such weights.
            CheckpointError: they cannot be read, or do not say which model they belong to.
        """
        return cls(checkpoint_config(weights), device=device or _best_device(), **options)

    def __call__(self, image: Images) -> Result:
        """What is found in an image: array uint8 (H, W, 3), image of Pillow's, path or address.

        Raises:
            ValueError: it is no image, or more than one.
            DataError, OSError: it cannot be read.
        """
        picture = read_picture(image, input_format=self._input_format)
        if self.tiles is not None:
            return self._tiled(picture, self.tiles, batch_size=1)
        return self._run([self._prepare(picture)])[0]

    def predict(self, images: Images, *, batch_size: int = 1) -> list[Result]:
        """The results of some images, all at once; see `stream`."""
        return list(self.stream(images, batch_size=batch_size))

    def stream(self, images: Images, *, batch_size: int = 1, on_error: OnError | None = None) -> Iterator[Result]:
        """The results of any number of images, one after the other in their order.

        No more images are read than are needed for the next result: those of at most four batches.

        Args:
            images: an array, image of Pillow's, path, folder, glob pattern or address, several arrays (N, H, W, 3) of
                one size, or anything that gives such one after the other, such as frames of a video.
            batch_size: so many images, or tiles of one, run together, if they have the same size when they are resized
                for the model.
            on_error: called with the name of a file that cannot be read, and the error; it is then left out. By default
                the error is raised.

        Raises:
            ValueError: something is no image, or there is none.
            DataError, OSError: a file cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        pictures = read_pictures(images, input_format=self._input_format, on_error=on_error)
        if (tiles := self.tiles) is not None:
            return (self._tiled(picture, tiles, batch_size=batch_size) for picture in pictures)
        prepared = (self._prepare(picture) for picture in pictures)
        return in_batches(prepared, lambda item: item.inputs["image"].shape, self._run, batch_size=batch_size)

    def draw(self, image: np.ndarray, output: Result | dict[str, Any]) -> np.ndarray:
        """The image, in its own channel order, under the first that `output` has of panoptic, instances, semantic.

        Returns:
            uint8 (H, W, 3), a whole number of times as large as a small image.
        """
        order = slice(None, None, -1 if self._input_format == "BGR" else 1)
        rgb = np.ascontiguousarray(image[:, :, order])
        found = output.output if isinstance(output, Result) else output
        return draw_output(rgb, found, self.metadata, score_threshold=0.0)[:, :, order]

    def export(self, output: str | os.PathLike[str], *, format: str = "onnx", **options: Any) -> Comparison:
        """Write the model as a file for another runtime, run the file, and compare it with PyTorch.

        Args:
            output: the file; it is kept only if it computes what the model does, and is a source of predictors, too.
            format: "onnx", "pt2", "openvino" or "tensorrt-onnx".
            options: of `mask2former.export.export_model`.

        Raises:
            ExportError: the model cannot be exported, or the file differs.
        """
        from mask2former.export import export_model

        thresholds = self.score_threshold if isinstance(self.score_threshold, list) else []
        known: dict[str, Any] = {"categories": categories_of(self.metadata), "score_thresholds": thresholds}
        return export_model(self.model, self.cfg, output, format=format, **known, **options)

    def _prepare(self, picture: Picture) -> _Prepared:
        height, width = picture.pixels.shape[:2]
        augmented = AugInput(picture.pixels[:, :, ::-1] if self.cfg.INPUT.FORMAT == "BGR" else picture.pixels)
        self._augmentation(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return _Prepared(picture, {"image": tensor, "height": height, "width": width})

    @torch.no_grad()
    def _outputs(self, batch: Sequence[_Prepared]) -> list[dict[str, Any]]:
        segmenter = in_tiles(self.cfg, self.model, labels_only=self._labels_only and self.tiles is None)
        outputs: list[dict[str, Any]] = segmenter([prepared.inputs for prepared in batch])
        for output in outputs:
            if "instances" in output:
                output["instances"] = select_instances(output["instances"], score_threshold=self.score_threshold)
        return outputs

    def _run(self, batch: Sequence[_Prepared]) -> list[Result]:
        outputs = self._outputs(batch)
        return [self._result(prepared.picture, output) for prepared, output in zip(batch, outputs, strict=True)]

    def _tiled(self, picture: Picture, tiles: Tiles, *, batch_size: int) -> Result:
        def outputs(images: Iterable[np.ndarray]) -> Iterator[dict[str, Any]]:
            prepared = (self._prepare(Picture(image)) for image in images)
            return in_batches(prepared, lambda item: item.inputs["image"].shape, self._outputs, batch_size=batch_size)

        return self._result(picture, predict_in_tiles(picture.pixels, tiles, outputs, labels_only=self._labels_only))

    def _result(self, picture: Picture, output: dict[str, Any]) -> Result:
        if "instances" in output:
            output["instances"] = select_instances(output["instances"], max_instances=self.max_instances)
        return Result(picture.pixels, output, self.metadata, name=picture.name)


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


def _named_config(source: str | os.PathLike[str]) -> CfgNode:
    """The config of a source, with compact outputs, on the best device."""
    cfg = source_config(source)
    cfg.defrost()
    cfg.MODEL.DEVICE = _best_device()
    cfg.MODEL.MASK_FORMER.TEST.COMPACT_OUTPUTS = True
    cfg.MODEL.MASK_FORMER.TEST.RUN_LENGTHS = True
    return cfg


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_options(
    threshold: float | None, score_threshold: float | None, max_instances: int | None, input_format: str
) -> None:
    for name, value in (("threshold", threshold), ("score_threshold", score_threshold)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, not {value}")
    if max_instances is not None and max_instances < 1:
        raise ValueError(f"max_instances must be at least 1, not {max_instances}")
    if input_format not in ("BGR", "RGB"):
        raise ValueError(f"input_format must be BGR or RGB, not {input_format!r}")
