"""Catalogs of data sets: name → function returning dataset dicts, and name → metadata."""

from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class _DatasetCatalog(UserDict):
    """Data sets by name. What is registered is a function without arguments that returns a list of dicts."""

    def register(self, name: str, func: Callable[[], list[dict[str, Any]]]) -> None:
        """Register a data set; AssertionError for a name in use, or what cannot be called."""
        if not callable(func):
            raise AssertionError(f"Dataset '{name}' must be registered with a function, not {func!r}.")
        if name in self:
            raise AssertionError(f"Dataset '{name}' is already registered.")
        self[name] = func

    def get(self, name: str) -> list[dict[str, Any]]:  # type: ignore[override]
        """The data set itself: calls the registered function.

        Raises:
            KeyError: for an unknown name; the message lists the known ones.
        """
        if name not in self:
            raise KeyError(f"Dataset '{name}' is not registered. Registered are: {', '.join(self.list())}")
        return self[name]()

    def list(self) -> list[str]:
        """All names."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget a data set."""
        self.pop(name)


class Metadata(SimpleNamespace):
    """What is known of a data set, as attributes. One that is set cannot be set to another value."""

    name: str = "N/A"  # so that an error message can name a data set without name

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(self.__dict__)
        raise AttributeError(f"No '{key}' in the metadata of dataset '{self.name}', which has: {known}")

    def __setattr__(self, key: str, value: Any) -> None:
        old = self.__dict__.get(key, value)
        if old != value:
            raise AssertionError(f"'{key}' in the metadata of '{self.name}' is set and cannot change: {old} != {value}")
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy as a dict."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns the metadata."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.__dict__.get(key, default)


class _MetadataCatalog(UserDict):
    """Metadata by name of data set: one object each, made at its first use."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The metadata of that data set, empty at first."""
        if not name:
            raise AssertionError("A dataset needs a name.")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """All names."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget the metadata of a data set."""
        self.pop(name)


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
