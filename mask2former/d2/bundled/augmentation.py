"""What augmentations are made of: the interface, the input they change, and lists of them."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class Augmentation:
    """A random policy: looks at the input and decides on a deterministic `Transform`.

    A subclass overrides `get_transform`; its argument names say which attributes of the input it is given.
    A single argument is always the image.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set attributes from `locals()` of a constructor (subclasses written for Detectron2 call this)."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Uniform in [low, high), or [0, low) (subclasses written for Detectron2 call this)."""
        if high is None:
            low, high = 0.0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def get_transform(self, *args: Any) -> Transform:
        """The transform for this input."""
        raise NotImplementedError

    def __call__(self, aug_input: Any) -> Transform:
        """Transform `aug_input` in place, return the transform.

        Raises:
            AttributeError: when the input lacks what `get_transform` asks for.
            TypeError: when `get_transform` has variable arguments or returns no transform.
        """
        if self.input_args is None:
            self.input_args = self._argument_names()
        own_name = type(self).__name__
        for name in self.input_args:
            if not hasattr(aug_input, name):
                raise AttributeError(f"{own_name} needs '{name}', which {type(aug_input).__name__} lacks.")
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        if not isinstance(transform, Transform):
            raise TypeError(f"{own_name}.get_transform returned {transform!r}, which is no Transform.")
        aug_input.transform(transform)
        return transform

    def _argument_names(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.get_transform).parameters
        if len(parameters) == 1:
            return ("image",)
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
            raise TypeError(f"{type(self).__name__}.get_transform has variable arguments: name them.")
        return tuple(parameters)

    def __repr__(self) -> str:
        names = inspect.signature(type(self).__init__).parameters
        shown = ", ".join(f"{n}={getattr(self, n)!r}" for n in names if n != "self" and hasattr(self, n))
        return f"{type(self).__name__}({shown})"


class _Fixed(Augmentation):
    """A given transform, whatever the input."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, aug_input: Any) -> Transform:
        aug_input.transform(self.transform)
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)


class AugmentationList(Augmentation):
    """Augmentations and transforms, one after the other."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        for aug in augs:
            if not isinstance(aug, Augmentation | Transform):
                raise AssertionError(f"{aug!r} is neither an Augmentation nor a Transform.")
        self.augs = [_Fixed(aug) if isinstance(aug, Transform) else aug for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Transform `aug_input` in place, return all transforms."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(repr, self.augs))}]"


class AugInput:
    """What augmentations read and change: `image` (H, W) or (H, W, C), `boxes` (N, 4), `sem_seg` (H, W).

    The image is uint8, or floating point in [0, 1] or [0, 255]; boxes are (x0, y0, x1, y1) in pixels.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise AssertionError(f"The image must be an array (H, W) or (H, W, C), not {type(image)}.")
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform everything in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)
