"""What is known of the instances of one image."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class Instances:
    """What is known of the instances of one image: any number of named fields of equal length.

    Fields are attributes: `instances.gt_classes = tensor`. Indexing, `to` and `cat` work on all fields.
    """

    _image_size: tuple[int, int]
    _fields: dict[str, Any]

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # `_fields` itself is missing while an object is being unpickled or copied
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Instances have no field '{name}'.")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Set a field; AssertionError when its length differs from that of the others."""
        if self._fields and len(value) != len(self):
            raise AssertionError(f"Field '{name}' has length {len(value)}, the others have {len(self)}.")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Remove a field."""
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of that name."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name; changing the dict changes the instances."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Every field that can be converted by `to`, converted."""
        fields = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self._image_size, **fields)

    def __getitem__(self, item: int | slice | Tensor) -> "Instances":
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"Instance {item} of {len(self)}.")
            item = slice(item, None, len(self))
        return Instances(self._image_size, **{name: value[item] for name, value in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length.")

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("Instances are not iterable: iterate over a field.")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """Join instances of one image size that have the same fields."""
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if any(other.image_size != first.image_size for other in instance_lists):
            raise AssertionError(f"Image sizes differ: {[i.image_size for i in instance_lists]}")
        joined = Instances(first.image_size)
        for name, value in first.get_fields().items():
            values = [other.get(name) for other in instance_lists]
            if isinstance(value, Tensor):
                joined.set(name, torch.cat(values))
            elif isinstance(value, list):
                joined.set(name, list(itertools.chain(*values)))
            elif hasattr(type(value), "cat"):
                joined.set(name, type(value).cat(values))
            else:
                raise ValueError(f"Cannot join field '{name}' of type {type(value).__name__}.")
        return joined

    def __repr__(self) -> str:
        height, width = self._image_size
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        size = f"image_height={height}, image_width={width}"
        return f"Instances(num_instances={count}, {size}, fields=[{fields}])"
