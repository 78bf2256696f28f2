"""The meta-architecture: normalise, backbone, head, then criterion (training) or inference."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.data import Metadata, MetadataCatalog
from mask2former.d2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_sem_seg_head,
    sem_seg_postprocess,
)
from mask2former.d2.structures import ImageList, Instances

from .criterion import SetCriterion
from .inference import instance_inference, panoptic_inference, semantic_inference
from .masks import PackedMasks
from .matcher import HungarianMatcher, Target


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
    ) -> None:
        super().__init__()
        if not (semantic_on or instance_on or panoptic_on):
            raise ValueError(
                "no task is on: set one of MODEL.MASK_FORMER.TEST.SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON"
            )
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

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        test = cfg.MODEL.MASK_FORMER.TEST
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": _build_criterion(cfg),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "semantic_on": test.SEMANTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "panoptic_on": test.PANOPTIC_ON,
            "resize_masks_first": test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
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
                `gt_masks`, a tensor (T, H, W), BitMasks or PackedMasks.

        Returns:
            In training the weighted losses by name. Otherwise one dict per image with those asked for of
            `sem_seg` (C, height, width), `panoptic_seg`, a pair (ids, segments), and `instances`; see
            `mask2former.modeling.inference`.

        Raises:
            ValueError: in training, if a label is not in [0, C).
        """
        batch, outputs = self._run(batched_inputs)
        if self.training:
            size = (batch.tensor.shape[2], batch.tensor.shape[3])
            return self.criterion(outputs, [self._target(x, size) for x in batched_inputs])
        return [self._infer(*prediction) for prediction in _each_image(batch, outputs, batched_inputs)]

    def predict_masks(self, batched_inputs: Sequence[dict[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
        """What is inferred from, one image after another, in evaluation.

        Takes what `forward` takes, and gives class logits (Q, C+1) and mask logits (Q, height, width) at the size of
        the wanted output.
        """
        batch, outputs = self._run(batched_inputs)
        for class_logits, masks, image_size, output_size in _each_image(batch, outputs, batched_inputs):
            yield class_logits, sem_seg_postprocess(masks, image_size, *output_size)

    def _run(self, batched_inputs: Sequence[dict[str, Any]]) -> tuple[ImageList, dict[str, Any]]:
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        batch = ImageList.from_tensors(images, self.size_divisibility)
        return batch, self.sem_seg_head(self.backbone(batch.tensor))

    def _infer(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> dict[str, Any]:
        """Turn one image's predictions (Q, C+1) and (Q, padded height, padded width) into the outputs asked for."""
        if not self.resize_masks_first:
            scores = semantic_inference(class_logits, mask_logits)
            return {"sem_seg": sem_seg_postprocess(scores, image_size, *output_size)}
        return self.segment(class_logits, sem_seg_postprocess(mask_logits, image_size, *output_size))

    def segment(self, class_logits: Tensor, mask_logits: Tensor) -> dict[str, Any]:
        """Turn class logits (Q, C+1) and mask logits (Q, H, W) of the output's size into the outputs asked for."""
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = semantic_inference(class_logits, mask_logits)
        if self.panoptic_on:
            result["panoptic_seg"] = panoptic_inference(
                class_logits,
                mask_logits,
                thing_ids=self.thing_ids,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            result["instances"] = instance_inference(
                class_logits,
                mask_logits,
                topk=self.detections_per_image,
                thing_ids=self.thing_ids if self.panoptic_on else None,
            )
        return result

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
        masks = instances.gt_masks
        if not isinstance(masks, Tensor | PackedMasks):
            masks = masks.tensor  # BitMasks
        packed = PackedMasks.pack(masks.to(self.device, non_blocking=True)).padded(*size)
        return Target(labels=labels.to(self.device, non_blocking=True), masks=packed)


def _each_image(
    batch: ImageList, outputs: dict[str, Any], batched_inputs: Sequence[dict[str, Any]]
) -> Iterator[tuple[Tensor, Tensor, tuple[int, int], tuple[int, int]]]:
    """Class logits, mask logits at the padded size, the image's own size, and the size of the wanted output."""
    for i, inputs in enumerate(batched_inputs):
        image_size = batch.image_sizes[i]
        output_size = (inputs.get("height", image_size[0]), inputs.get("width", image_size[1]))
        masks = F.interpolate(
            outputs["pred_masks"][i].float().unsqueeze(0),
            size=batch.tensor.shape[-2:],
            mode="bilinear",
            align_corners=False,
        ).squeeze(0)
        yield outputs["pred_logits"][i].float(), masks, image_size, output_size


def _name(inputs: dict[str, Any]) -> str:
    return str(inputs.get("file_name", inputs.get("image_id", "an image")))


def _build_criterion(cfg: CfgNode) -> SetCriterion:
    node = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        cost_class=node.CLASS_WEIGHT,
        cost_mask=node.MASK_WEIGHT,
        cost_dice=node.DICE_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
    )
    weight = cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT
    return SetCriterion(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher=matcher,
        class_weight=weight * node.CLASS_WEIGHT,
        mask_weight=weight * node.MASK_WEIGHT,
        dice_weight=weight * node.DICE_WEIGHT,
        no_object_weight=node.NO_OBJECT_WEIGHT,
        deep_supervision=node.DEEP_SUPERVISION,
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
    )
