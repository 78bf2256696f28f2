"""The meta-architecture: normalise, backbone, head, then criterion (training) or inference."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.data import Metadata, MetadataCatalog
from mask2former.d2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_sem_seg_head,
)
from mask2former.d2.structures import BitMasks, ImageList, Instances, PolygonMasks

from .build import build_criterion
from .criterion import weighted_losses
from .inference import InstanceTask, PanopticTask, SemanticTask, Task, run_before_resizing, run_tasks
from .mask_rows import OutputMasks
from .masks import PackedMasks
from .matcher import Target
from .per_pixel import PerPixelBaselineHead, PerPixelBaselinePlusHead

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types of autocast by their names in configurations; None: there is no autocast."""


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Segment images by classifying masks: Mask2Former, and MaskFormer with its decoders.

    Args:
        backbone: gives feature maps by name.
        sem_seg_head: maps them to `pred_logits`, `pred_masks` and `aux_outputs`.
        criterion: training loss.
        num_classes: C, "no object" not counted.
        metadata: of the training set; panoptic inference asks it which classes are things.
        size_divisibility: images are padded to a multiple of it; negative: to the backbone's own.
        pixel_mean: per channel, in the units of the images.
        pixel_std: likewise.
        semantic_on: give `sem_seg` in evaluation.
        instance_on: give `instances`; only things if `panoptic_on` too.
        panoptic_on: give `panoptic_seg`.
        resize_masks_first: resize mask logits to the output size before semantic inference, not its scores
            afterwards. Panoptic and instance inference always do.
        object_mask_threshold: see `panoptic_inference`.
        overlap_threshold: see `panoptic_inference`.
        detections_per_image: most instances given for an image.
        test_precision: type of autocast of backbone and head in evaluation, a key of `PRECISIONS`. "float32" means
            none; one that the caller set up stays.
        compile_model: let `torch.compile` translate backbone and head when they first run.
        max_inference_bytes: what making the outputs of an image may take beside the predictions and the outputs
            themselves; images are done in parts that fit. None: what suits the device, see `working_memory`.
        compact_outputs: give `sem_seg` as labels (height, width), and the masks of `instances` as `PackedMasks`.
        run_lengths: give the masks of `instances` as `RunLengthMasks`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        num_classes: int,
        metadata: Metadata | None = None,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        semantic_on: bool,
        instance_on: bool,
        panoptic_on: bool,
        resize_masks_first: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        detections_per_image: int,
        test_precision: str = "float32",
        compile_model: bool = False,
        max_inference_bytes: int | None = None,
        compact_outputs: bool = False,
        run_lengths: bool = False,
    ) -> None:
        super().__init__()
        if not (semantic_on or instance_on or panoptic_on):
            raise ValueError(
                "no task is on: set one of MODEL.MASK_FORMER.TEST.SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON"
            )
        if isinstance(sem_seg_head, PerPixelBaselineHead | PerPixelBaselinePlusHead):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NAME {type(sem_seg_head).__name__!r} classifies pixels, not masks: it belongs to "
                "MODEL.META_ARCHITECTURE 'SemanticSegmentor'"
            )
        if test_precision not in PRECISIONS:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.PRECISION is {test_precision!r}; it must be one of {list(PRECISIONS)}"
            )
        self.test_dtype = PRECISIONS[test_precision]
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_classes = num_classes
        self.metadata = metadata
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.semantic_on, self.instance_on, self.panoptic_on = semantic_on, instance_on, panoptic_on
        self.resize_masks_first = resize_masks_first or instance_on or panoptic_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.detections_per_image = detections_per_image
        if compile_model:
            for module in (self.backbone, self.sem_seg_head):
                module.compile()  # in place: names in the state dict stay
        self.max_inference_bytes = max_inference_bytes
        self.compact_outputs = compact_outputs
        self.run_lengths = run_lengths

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            **output_settings(cfg),
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "test_precision": cfg.MODEL.MASK_FORMER.TEST.PRECISION,
            "compile_model": cfg.MODEL.COMPILE,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is and its inputs are moved to."""
        return self.pixel_mean.device

    @property
    def thing_ids(self) -> Collection[int]:
        """Contiguous classes that are things, from the training set's metadata.

        Raises:
            ValueError: if the metadata does not say.
        """
        ids = getattr(self.metadata, "thing_dataset_id_to_contiguous_id", None)
        if ids is None:
            raise ValueError(
                "panoptic inference must know which classes are things: the metadata of DATASETS.TRAIN[0] "
                f"({getattr(self.metadata, 'name', 'none given')}) lacks thing_dataset_id_to_contiguous_id"
            )
        return set(ids.values())

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Compute losses (training) or segmentations (evaluation).

        Args:
            batched_inputs: one dict per image: `image` (3, H, W), uint8 or float in [0, 255]; `height` and `width`
                of the wanted output, the image's own if absent; in training `instances` with `gt_classes` (T,) and
                `gt_masks`, a tensor (T, H, W) as `PackedMasks.pack` takes it, BitMasks, PolygonMasks or PackedMasks.

        Returns:
            In training the weighted losses by name. Otherwise one dict per image with those asked for of
            `sem_seg` (C, height, width), `panoptic_seg`, a pair (ids, segments), and `instances`; see
            `mask2former.modeling.inference`, and `compact_outputs` and `run_lengths` above.

        Raises:
            ValueError: in training, if a label is not in [0, C), or masks differ from their image in size.
            TypeError: in training, if `gt_masks` are none of these.
        """
        batch, outputs = self._run(batched_inputs)
        if self.training:
            size = (batch.tensor.shape[2], batch.tensor.shape[3])
            targets = [self._target(x, size) for x in batched_inputs]
            return weighted_losses(self.criterion, outputs, targets)
        return [self.segment(*prediction) for prediction in _each_image(batch, outputs, batched_inputs)]

    def _run(self, batched_inputs: Sequence[dict[str, Any]]) -> tuple[ImageList, dict[str, Any]]:
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        pixels = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(pixels, self.size_divisibility)
        with self._autocast():
            return batch, self.sem_seg_head(self.backbone(batch.tensor))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.training or self.test_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.test_dtype)

    def segment(self, class_logits: Tensor, masks: OutputMasks) -> dict[str, Any]:
        """Turn the predictions for one image, class logits (Q, C+1) and masks, into the outputs asked for."""
        size, thing_ids = masks.size, self.thing_ids if self.panoptic_on else None
        tasks: dict[str, Task] = {}
        if self.semantic_on:
            semantic = SemanticTask(class_logits, size, labels_only=self.compact_outputs)
            if not self.resize_masks_first:
                return {"sem_seg": run_before_resizing(semantic, masks, max_bytes=self.max_inference_bytes)}
            tasks["sem_seg"] = semantic
        if thing_ids is not None:
            tasks["panoptic_seg"] = PanopticTask(
                class_logits,
                size,
                thing_ids=thing_ids,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            tasks["instances"] = InstanceTask(
                class_logits,
                size,
                topk=self.detections_per_image,
                thing_ids=thing_ids,
                packed=self.compact_outputs,
                run_lengths=self.run_lengths,
            )
        results = run_tasks(list(tasks.values()), masks, max_bytes=self.max_inference_bytes)
        return dict(zip(tasks, results, strict=True))

    def _target(self, inputs: dict[str, Any], size: tuple[int, int]) -> Target:
        """Pad the masks of one image to the size (height, width) of the batch."""
        if "instances" not in inputs:
            raise ValueError(f"training needs `instances` for {_name(inputs)}; did the mapper run with is_train=True?")
        instances: Instances = inputs["instances"]
        labels = instances.gt_classes
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"a label of {_name(inputs)} is outside [0, {self.num_classes}): {sorted(set(labels.tolist()))}; "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES must be the number of classes of the data set"
            )
        image_size = (inputs["image"].shape[-2], inputs["image"].shape[-1])
        masks = _packed(instances.gt_masks, image_size, self.device, _name(inputs)).padded(*size)
        return Target(labels=labels.to(self.device, non_blocking=True), masks=masks)


def output_settings(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of `MaskFormer` that say which outputs are made of predictions, and how."""
    test = cfg.MODEL.MASK_FORMER.TEST
    return {
        "semantic_on": test.SEMANTIC_ON,
        "instance_on": test.INSTANCE_ON,
        "panoptic_on": test.PANOPTIC_ON,
        "resize_masks_first": test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
        "overlap_threshold": test.OVERLAP_THRESHOLD,
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "max_inference_bytes": test.MAX_MEMORY_MB * 2**20 if test.MAX_MEMORY_MB > 0 else None,
        "compact_outputs": test.COMPACT_OUTPUTS,
        "run_lengths": test.RUN_LENGTHS,
    }


def _packed(masks: object, size: tuple[int, int], device: torch.device, name: str) -> PackedMasks:
    """Pack the masks of an image, of its size (height, width), on a device."""
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *size)
    masks = masks if isinstance(masks, Tensor | PackedMasks) else getattr(masks, "tensor", None)  # of BitMasks
    if not isinstance(masks, Tensor | PackedMasks):
        raise TypeError(
            f"gt_masks of {name} are of an unknown kind: give a tensor (n, H, W), BitMasks, PolygonMasks or PackedMasks"
        )
    if tuple(masks.shape[1:]) != size:
        raise ValueError(
            f"gt_masks of {name} are (n, H, W) {tuple(masks.shape)}, but its image is {size[0]} x {size[1]}: resize "
            "and crop both alike"
        )
    try:
        return PackedMasks.pack(masks.to(device, non_blocking=True))
    except ValueError as error:
        raise ValueError(f"gt_masks of {name}: {error}") from error


def _each_image(
    batch: ImageList, outputs: dict[str, Any], batched_inputs: Sequence[dict[str, Any]]
) -> Iterator[tuple[Tensor, OutputMasks]]:
    """Class logits (Q, C+1) and masks of each image."""
    padded_size = (int(batch.tensor.shape[2]), int(batch.tensor.shape[3]))
    for i, inputs in enumerate(batched_inputs):
        height, width = batch.image_sizes[i]
        masks = OutputMasks(
            outputs["pred_masks"][i].float(),
            padded_size=padded_size,
            image_size=(height, width),
            output_size=(inputs.get("height", height), inputs.get("width", width)),
        )
        yield outputs["pred_logits"][i].float(), masks


def _name(inputs: dict[str, Any]) -> str:
    return str(inputs.get("file_name", inputs.get("image_id", "an image")))
