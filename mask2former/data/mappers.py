"""From a dataset dict to what the model is given: one skeleton, one subclass per task.

A subclass says how its annotations become targets, and which augmentations go with it; nothing else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.d2 import transforms as T
from mask2former.d2.config import CfgNode, configurable
from mask2former.d2.data import MetadataCatalog
from mask2former.d2.registry import Registry
from mask2former.d2.structures import Instances
from mask2former.data.augmentation import (
    CategoryAreaCrop,
    build_lsj_augmentation,
    build_resize_crop_augmentation,
    build_test_augmentation,
)
from mask2former.data.example import Example, MaskBoxes, label_map, padding_mask
from mask2former.data.images import (
    DataError,
    UnreadableImageError,
    check_size,
    read_image,
)
from mask2former.data.labels import read_labels, read_segments
from mask2former.data.targets import Targets, instance_targets, panoptic_targets, semantic_targets

logger = logging.getLogger(__name__)

IMAGE_PADDING = 128

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Mappers by INPUT.DATASET_MAPPER_NAME. A registered object is called as `object(cfg, is_train)`, and returns a
function from a dataset dict to an input dict of the model. Its attribute `reads`, if any, is the key of dataset dicts
that targets are made of: "pan_seg_file_name", "sem_seg_file_name" or "annotations".
"""

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def _register(name: str) -> Callable[[type["DatasetMapper"]], type["DatasetMapper"]]:
    """Register a class under the name that published configs give."""

    def register(mapper: type[DatasetMapper]) -> type[DatasetMapper]:
        DATASET_MAPPER_REGISTRY._do_register(name, mapper)
        return mapper

    return register


def build_mapper(cfg: CfgNode, is_train: bool) -> Mapper:
    """The mapper that INPUT.DATASET_MAPPER_NAME names."""
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in DATASET_MAPPER_REGISTRY:
        known = ", ".join(sorted(key for key, _ in DATASET_MAPPER_REGISTRY))
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; there are {known}")
    return DATASET_MAPPER_REGISTRY.get(name)(cfg, is_train)


class DatasetMapper:
    """Reads the image, and in training its annotations; augments both; makes tensors.

    Called with a dataset dict, returns a copy of it without annotations, and with

    - `image`: (3, H, W) uint8 in `image_format`;
    - `height`, `width`: of the file, where the dict lacks them;
    - in training `instances`: `gt_classes` (n,) int64 and `gt_masks`, n `PackedMasks`, whose `tensor` is bool
      (n, H, W). Of panoptic segments that the crop left nothing of, masks are empty; instances are left out.
      `gt_boxes` around the masks are made when asked for;
    - in training, made when asked for, `padding_mask`: (H, W) bool, True where the image is padded.

    Raises:
        UnreadableImageError, FileNotFoundError: the image, or a file of its annotation.
        DataError: anything else that is wrong; the message begins with the file name and the image id.

    Attributes:
        reads: the key of dataset dicts that targets are made of.
        later: functions that make further entries of an `Example` when they are asked for.
    """

    reads: str | None = None
    build_augmentation: Callable[[CfgNode], list[T.Augmentation]]

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        size_divisibility: int = -1,
    ) -> None:
        """
        Args:
            is_train: whether to read annotations.
            augmentations: applied in this order.
            image_format: order of the channels, "RGB" or "BGR".
            size_divisibility: in training, image (with 128) and masks are padded at the bottom and right
                to multiples of this; not if negative.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.size_divisibility = size_divisibility
        self.later: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self._needs_categories = any(isinstance(item, CategoryAreaCrop) for item in augmentations)
        self._told_larger = False
        logger.info("%s (%s): %s", type(self).__name__, "train" if is_train else "test", self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": cls.build_augmentation(cfg) if is_train else build_test_augmentation(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
        }

    def load_targets(self, dataset_dict: Mapping[str, Any], size: tuple[int, int]) -> Targets:
        """What the task trains on, before augmentation; the image has (height, width) `size`."""
        raise NotImplementedError

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._map(dataset_dict)
        except (UnreadableImageError, FileNotFoundError):
            raise  # which name the file, and may be skipped
        except Exception as error:  # from whatever part: which image it was, helps with all of them
            what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            image_id = dataset_dict.get("image_id", "without id")
            raise DataError(f"{dataset_dict.get('file_name')} (image {image_id}): {what}") from error

    def _map(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        image = read_image(dataset_dict["file_name"], self.image_format)
        size = (image.shape[0], image.shape[1])
        result = {"height": size[0], "width": size[1], **dataset_dict}
        for key in ("annotations", "sem_seg_values", "sem_seg_colors", "void_segments"):
            result.pop(key, None)
        check_size(dataset_dict["file_name"], size, (result["height"], result["width"]), "its annotation")
        if not self.is_train:
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
            result["image"] = _to_tensor(aug_input.image)
            return result

        result.pop("segments_info", None)
        targets = self.load_targets(dataset_dict, size)
        aug_input = T.AugInput(image, sem_seg=targets.category_map() if self._needs_categories else None)
        transform = self.augmentations(aug_input)
        classes, masks = targets.transformed(transform, aug_input.image.shape[:2])
        padded = self._pad(_to_tensor(aug_input.image))
        result["image"] = padded
        instances = Instances((padded.shape[1], padded.shape[2]))
        instances.gt_classes = classes
        instances.gt_masks = masks.padded(*instances.image_size)
        instances.gt_boxes = MaskBoxes(instances.gt_masks)
        result["instances"] = instances
        return Example(result, {**self.later, "padding_mask": partial(padding_mask, transform=transform, size=size)})

    def _pad(self, image: Tensor) -> Tensor:
        if self.size_divisibility <= 0:
            return image
        height, width = image.shape[1:]
        if max(height, width) > self.size_divisibility and not self._told_larger:
            self._told_larger = True
            logger.warning(
                "A training image of %dx%d exceeds INPUT.SIZE_DIVISIBILITY %d: padded to the next multiple",
                width, height, self.size_divisibility,
            )  # fmt: skip
        padding = (0, -width % self.size_divisibility, 0, -height % self.size_divisibility)
        return F.pad(image, padding, value=IMAGE_PADDING)


class _PanopticMapper(DatasetMapper):
    reads = "pan_seg_file_name"

    def load_targets(self, dataset_dict: Mapping[str, Any], size: tuple[int, int]) -> Targets:
        path = dataset_dict["pan_seg_file_name"]
        ids = read_segments(dataset_dict)
        check_size(path, ids.shape, size, dataset_dict["file_name"])
        return panoptic_targets(ids, dataset_dict["segments_info"], path)


class _InstanceMapper(DatasetMapper):
    reads = "annotations"

    def load_targets(self, dataset_dict: Mapping[str, Any], size: tuple[int, int]) -> Targets:
        return instance_targets(dataset_dict["annotations"], size)


@_register("mask_former_panoptic")
class MaskFormerPanopticDatasetMapper(_PanopticMapper):
    """Panoptic segments; resize, crop, colour, flip. Gives `sem_seg` as the semantic mapper does."""

    build_augmentation = staticmethod(build_resize_crop_augmentation)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.later["sem_seg"] = partial(label_map, ignore_label=255)


@_register("coco_panoptic_lsj")
class COCOPanopticNewBaselineDatasetMapper(_PanopticMapper):
    """Panoptic segments; large-scale jitter."""

    build_augmentation = staticmethod(build_lsj_augmentation)


@_register("mask_former_instance")
class MaskFormerInstanceDatasetMapper(_InstanceMapper):
    """COCO annotations; resize, crop, colour, flip."""

    build_augmentation = staticmethod(build_resize_crop_augmentation)


@_register("coco_instance_lsj")
class COCOInstanceNewBaselineDatasetMapper(_InstanceMapper):
    """COCO annotations; large-scale jitter."""

    build_augmentation = staticmethod(build_lsj_augmentation)


@_register("mask_former_semantic")
class MaskFormerSemanticDatasetMapper(DatasetMapper):
    """One mask per class of a label map; resize, crop, colour, flip.

    In training, made when asked for, `sem_seg`: (H, W) int64 classes and `ignore_label`.
    """

    reads = "sem_seg_file_name"
    build_augmentation = staticmethod(build_resize_crop_augmentation)

    @configurable
    def __init__(
        self,
        *,
        ignore_label: int = 255,
        num_classes: int | None = None,
        with_label_map: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            ignore_label: label of pixels that nothing is learnt from.
            num_classes: labels must be below; None leaves them unchecked.
            with_label_map: whether to make `sem_seg` at once.
        """
        super().__init__(**kwargs)
        self.ignore_label = ignore_label
        self.num_classes = num_classes
        self.with_label_map = with_label_map
        self.later["sem_seg"] = partial(label_map, ignore_label=ignore_label)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        if is_train:
            metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
            arguments["ignore_label"] = metadata.get("ignore_label", 255)
            classes = metadata.get("stuff_classes")
            arguments["num_classes"] = None if classes is None else len(classes)
            # Detectron2's own architecture learns from label maps, not from masks: they are made in the workers.
            arguments["with_label_map"] = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
        return arguments

    def load_targets(self, dataset_dict: Mapping[str, Any], size: tuple[int, int]) -> Targets:
        path = dataset_dict["sem_seg_file_name"]
        labels = read_labels(dataset_dict)
        check_size(path, labels.shape, size, dataset_dict["file_name"])
        return semantic_targets(labels, path, ignore_label=self.ignore_label, num_classes=self.num_classes)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        result = super().__call__(dataset_dict)
        if self.is_train and self.with_label_map:
            result["sem_seg"] = label_map(result, ignore_label=self.ignore_label)
        return result


def _to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) to (3, H, W), on contiguous memory."""
    return torch.from_numpy(np.stack(cv2.split(np.ascontiguousarray(image))))  # thrice as fast as PyTorch's copy
